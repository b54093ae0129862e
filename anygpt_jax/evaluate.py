"""Scores a model on held-out small-world data and prints the table.

    python -m anygpt_jax.evaluate --workdir=runs/quickstart/model --heldout=runs/quickstart/world/heldout \\
        --n=100 --out=runs/evaluation

Writes evaluation.json and examples of every direction to --out; see evaluation.py.
"""

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import report, shipped
from anygpt_jax.evaluation import evaluate

_WORKDIR = flags.DEFINE_string("workdir", shipped.SHIPPED, "A training run, or 'shipped'.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; by default the newest.", lower_bound=0)
_HELDOUT = flags.DEFINE_string("heldout", None, "A small world, split heldout.")
_N = flags.DEFINE_integer("n", 100, "Items per direction.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "Folder for evaluation.json and the examples.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of instructions and sampling.")


def main(positional: list[str]) -> None:
    """Evaluates and prints."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    for flag in (_HELDOUT, _OUT):
        if not flag.value:
            raise cli.UserError(f"Give --{flag.name}=DIR.")
    model = shipped.open_model(_WORKDIR.value, _STEP.value)
    result = evaluate(model, _HELDOUT.value, _N.value, _OUT.value, _SEED.value)
    print(report.text_table({_WORKDIR.value: result["directions"]}))
    print(f"Examples and figures: {_OUT.value}")


if __name__ == "__main__":
    cli.run(main)
