"""Trains the language model on packed data, and continues by itself where an earlier run stopped.

    python -m anygpt_jax.train --config=configs/tiny.py --workdir=runs/tiny --config.data.dir=PACKED

On several hosts the same command runs on each, with --coordinator=auto on Cloud TPU, GKE or Slurm, elsewhere
with --coordinator=HOST:PORT of the first host, --num_processes and --process_id.

The working directory may be in a bucket (--workdir=gs://BUCKET/run, with the extra `gcs`).

Exit codes: 0 done; 2 a mistake in the arguments; 3 the loss stopped being finite; 128 + n stopped by signal n
with everything saved; anything else, such as 1 where another host is lost: start it again.
"""

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import allocator, distributed
from anygpt_jax.training import ending, loop

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory (or gs://…) of the run: checkpoints, logs, codecs."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "On several hosts: auto, or HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With HOST:PORT: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With HOST:PORT: which of them this is, from 0.")


def main(positional: list[str]) -> int:
    """Runs the training loop; how it ended is the exit code."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    if not flags.FLAGS.config:
        raise cli.UserError("Give a config, such as --config=configs/tiny.py.")
    if not _WORKDIR.value:
        raise cli.UserError("Give the directory of the run as --workdir=DIR.")
    allocator.keep_freed_memory()
    allocator.take_most_of_gpus()
    distributed.start(_WORKDIR.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    with distributed.failing_alone():
        return ending.exit_code(lambda: loop.train(flags.FLAGS.config, _WORKDIR.value))


if __name__ == "__main__":
    cli.define_config_flag()
    cli.run(main)
