"""Writes a trained model as the small directory that the package ships.

    python -m anygpt_jax.export --workdir=runs/long/model --storage=int8

See shipped.py; --out is by default the place in the package that `sample` reads.
"""

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import shipped

_WORKDIR = flags.DEFINE_string("workdir", None, "The training run.")
_OUT = flags.DEFINE_string("out", str(shipped.DIRECTORY), "Directory to write.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; by default the newest.", lower_bound=0)
_STORAGE = flags.DEFINE_enum("storage", "float16", shipped.STORAGES, "How weights are stored.")


def main(positional: list[str]) -> None:
    """Exports and prints the size."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    if not _WORKDIR.value:
        raise cli.UserError("Give the training run as --workdir=DIR.")
    size = shipped.export(_WORKDIR.value, _OUT.value, _STEP.value, _STORAGE.value)
    print(f"{_OUT.value}: weights of {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main)
