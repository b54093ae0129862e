"""Media files to codes: `python -m anygpt_jax.tokenize --config=configs/tiny.py --manifest=my.jsonl
--out=DIR`.

The manifest has a line per item, {"text": …, "image" | "speech" | "music": file}. See data/tokenizing.py.
"""

import sys

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax.data import defaults, manifest, tokenizing


def main(_: list[str]) -> None:
    """Tokenises --manifest and prints what was left out."""
    config, out = flags.FLAGS.config, flags.FLAGS.out
    cli.check_fields(config, ("codecs", "vocabulary", "tokenize"), "anygpt_jax.tokenize")
    codecs = defaults.load_codecs(config.codecs)
    vocabulary, _ = defaults.build_vocabulary(config.vocabulary, codecs)
    meta = tokenizing.tokenize_manifest(
        flags.FLAGS.manifest, out, vocabulary, codecs, config.tokenize.crop, config.tokenize.shard_size
    )
    print(f"{out}: " + ", ".join(f"{count} {name}" for name, count in meta["items"].items()))
    skipped = manifest.read_skipped(f"{out}/{tokenizing.SKIPPED}")
    if skipped:
        print(f"{len(skipped)} left out (all in {out}/{tokenizing.SKIPPED}):", file=sys.stderr)
        print(manifest.describe_skipped(skipped), file=sys.stderr)


if __name__ == "__main__":
    cli.define_config_flag()
    flags.DEFINE_string("manifest", None, "JSON lines of text and media files", required=True)
    flags.DEFINE_string("out", None, "directory of tokens to write", required=True)
    cli.run(main)
