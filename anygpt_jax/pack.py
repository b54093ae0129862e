"""Codes to training rows: `python -m anygpt_jax.pack --config=configs/tiny.py --tokens=DIR[,DIR…]
--out=PACKED`.

Sources are directories made by anygpt_jax.tokenize and .jsonl files of the original string format;
`name=source` makes a data set of that name. See data/documents.py and data/packing.py.
"""

import sys

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import prompts
from anygpt_jax.data import defaults, documents, manifest, packing


def main(_: list[str]) -> None:
    """Packs --tokens and prints the counts of each data set."""
    config, out = flags.FLAGS.config, flags.FLAGS.out
    cli.check_fields(config, ("codecs", "vocabulary", "instructions", "pack"), "anygpt_jax.pack")
    vocabulary, tokenizer = defaults.build_vocabulary(config.vocabulary, defaults.load_codecs(config.codecs))
    instructions = prompts.load_instructions(config.instructions or None)
    meta = documents.pack_tokens(flags.FLAGS.tokens, out, vocabulary, tokenizer, instructions, **config.pack)
    for name, entry in meta["datasets"].items():
        print(
            f"{out}/{name}: {entry['documents']} documents, {entry['tokens']} tokens "
            f"in {entry['records']} rows of {meta['seq_len']} ({entry['fill']:.1%} full)"
        )
    skipped = manifest.read_skipped(f"{out}/{packing.SKIPPED}")
    if skipped:
        print(f"{len(skipped)} documents left out (all in {out}/{packing.SKIPPED}):", file=sys.stderr)
        print(manifest.describe_skipped(skipped), file=sys.stderr)


if __name__ == "__main__":
    cli.define_config_flag()
    flags.DEFINE_list("tokens", None, "token directories or .jsonl files, separated by commas", required=True)
    flags.DEFINE_string("out", None, "directory of packed data to write", required=True)
    cli.run(main)
