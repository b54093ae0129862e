"""The main job: from nothing to a trained any-to-any model of the small world, and a report on it.

    python -m anygpt_jax.quickstart --workdir=runs/quickstart --config=configs/tiny.py

Stages: generate the small world, tokenise, pack, train, evaluate (this model and the shipped one), report.
Each is kept when it is done, so the same command continues an interrupted run; see stages.py.

    workdir/world/{train,heldout}   workdir/tokens   workdir/packed   workdir/model   (what `sample` reads)
    workdir/evaluation/{own,shipped}   workdir/report.html   workdir/report.json
"""

from pathlib import Path
from typing import Any

from absl import flags
from anygpt_tokenizers import cli
from ml_collections import config_dict

from anygpt_jax import allocator, prompts, report, shipped, storage
from anygpt_jax.checkpoint import load_model
from anygpt_jax.data import defaults, documents, tokenizing
from anygpt_jax.evaluation import evaluate
from anygpt_jax.smallworld.generate import generate
from anygpt_jax.stages import Stages
from anygpt_jax.training import ending, loop
from anygpt_jax.training.metrics_log import read_metrics

WORLD, TOKENS, PACKED, MODEL, EVALUATION = "world", "tokens", "packed", "model", "evaluation"
_NOT_OF_TRAINING = ("world", "evaluation", "tokenize", "pack", "instructions", "vocabulary")
_STAGES = 7


def quickstart(config: config_dict.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Runs what is not done yet.

    Args:
      config: of configs/tiny.py: the fields of training/defaults.py and data/defaults.py, and
        `world` {images, speech, music, seed}, `evaluation` {n, seed}.
      workdir: holds everything that is made.
    Returns:
      The content of report.json.
    Raises:
      UserError, and DivergedError and StoppedError of training.
    """
    for field in ("world", "evaluation"):
        if field not in config:
            raise cli.UserError(
                f"The config has no config.{field}, which the main job needs; see configs/tiny.py."
            )
    storage.refuse_address(workdir, "the quickstart's data have to be on a disk: give a directory")
    workdir = Path(workdir)
    fields = config.to_dict()
    count, world = config.evaluation.n, dict(config.world)
    counts = {name: world[name] for name in ("images", "speech", "music")}
    train_world, heldout = workdir / WORLD / "train", workdir / WORLD / "heldout"
    stages = Stages(workdir, _STAGES)

    # ---------------------------------------------------------------- the small world
    def make_world():
        generate(train_world, "train", **counts, seed=world["seed"])
        generate(heldout, "heldout", images=count, speech=count, music=count, seed=world["seed"])

    settings = {"world": world, "n": count}
    stages.run("world", "Generate the small world", settings, make_world, outputs=[WORLD])

    # ---------------------------------------------------------------- codes
    codecs = defaults.load_codecs(config.codecs)
    vocabulary, text_tokenizer = defaults.build_vocabulary(config.vocabulary, codecs)

    def tokenize():
        manifest = train_world / "manifest.jsonl"
        crop, shard_size = config.tokenize.crop, config.tokenize.shard_size
        meta = tokenizing.tokenize_manifest(manifest, workdir / TOKENS, vocabulary, codecs, crop, shard_size)
        return {"items": meta["items"], "skipped": meta["skipped"]}

    settings = {"vocabulary": vocabulary.to_json(), "tokenize": fields["tokenize"]}
    stages.run("tokenize", "Media to codes", settings, tokenize, after=["world"], outputs=[TOKENS])

    # ---------------------------------------------------------------- rows of tokens
    def pack():
        instructions = prompts.load_instructions(config.instructions or None)
        meta = documents.pack_tokens(
            [str(workdir / TOKENS)], workdir / PACKED, vocabulary, text_tokenizer, instructions, **config.pack
        )
        return {"datasets": meta["datasets"], "skipped": meta["skipped"]}

    settings = {"pack": fields["pack"], "instructions": fields["instructions"]}
    packed = stages.run("pack", "Codes to rows", settings, pack, after=["tokenize"], outputs=[PACKED])

    # ---------------------------------------------------------------- the language model
    def train():
        training = config.copy_and_resolve_references()
        training.data.dir = str(workdir / PACKED)
        return loop.train(training, str(workdir / MODEL))

    settings = {name: value for name, value in fields.items() if name not in _NOT_OF_TRAINING}
    stages.run("train", "Train", settings, train, after=["pack"], outputs=[MODEL])

    # ---------------------------------------------------------------- judged
    def evaluate_own():
        model = load_model(workdir / MODEL)
        return evaluate(model, heldout, count, workdir / EVALUATION / "own", config.evaluation.seed)

    def evaluate_shipped():
        if not shipped.is_shipped():
            print("  (this copy of the package has no trained model)")
            return None
        model = shipped.load_shipped()
        out, seed = workdir / EVALUATION / "shipped", config.evaluation.seed
        return evaluate(model, heldout, count, out, seed, own["ceilings"])

    settings = fields["evaluation"]
    outputs = [f"{EVALUATION}/own"]
    own = stages.run("evaluate", "Evaluate this model", settings, evaluate_own, ["train"], outputs)
    settings = {**fields["evaluation"], "model": shipped.identity()}
    outputs = [f"{EVALUATION}/shipped"]
    theirs = stages.run(
        "evaluate_shipped", "Evaluate the shipped model", settings, evaluate_shipped, ["world"], outputs
    )

    # ---------------------------------------------------------------- report
    print(f"[{_STAGES}/{_STAGES}] Report", flush=True)
    run = report.Run(
        own=own,
        shipped=theirs,
        folder=workdir / EVALUATION,
        metrics=read_metrics(str(workdir / MODEL)),
        seconds=stages.seconds(),
        data=packed["datasets"],
    )
    return report.write(run, workdir)


_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Where everything is made and kept.")


def main(positional: list[str]) -> int:
    """Runs the job, prints the table of results and where the report is."""
    if positional:
        raise cli.UserError(f"Unexpected argument {positional[0]!r}; give everything as --flag=value.")
    allocator.keep_freed_memory()
    result: dict[str, Any] = {}
    failed = ending.exit_code(lambda: result.update(quickstart(flags.FLAGS.config, _WORKDIR.value)))
    if failed:
        return failed
    tables = {"this run": result["directions"]}
    if result["shipped"]:
        tables["shipped"] = result["shipped"]["directions"]
    print(report.text_table(tables))
    print(f"\nReport: {Path(_WORKDIR.value, report.HTML_FILE).resolve()}")
    print(
        f'Try: python -m anygpt_jax.sample --workdir={_WORKDIR.value}/{MODEL} "text|image|a small red circle"'
    )
    return 0


if __name__ == "__main__":
    cli.define_config_flag(default="configs/tiny.py")
    cli.run(main)
