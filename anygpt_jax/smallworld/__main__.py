"""python -m anygpt_jax.smallworld --out=DIR --split=train --images=6000 --speech=4000 --music=2000"""

import time

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax.smallworld import captions
from anygpt_jax.smallworld.generate import generate

_OUT = flags.DEFINE_string("out", None, "folder to write: images/, speech/, music/ and manifest.jsonl")
_SPLIT = flags.DEFINE_enum("split", "train", captions.SPLITS, "what training may see, or what it never sees")
_IMAGES = flags.DEFINE_integer("images", 0, "number of pictures")
_SPEECH = flags.DEFINE_integer("speech", 0, "number of spoken sentences")
_MUSIC = flags.DEFINE_integer("music", 0, "number of pieces of music")
_SEED = flags.DEFINE_integer("seed", 0, "seed; the same seed gives the same files")


def main(_argv: list[str]) -> None:
    if not _OUT.value:
        raise cli.UserError("Say where to write with --out=DIR.")
    if not (_IMAGES.value or _SPEECH.value or _MUSIC.value):
        raise cli.UserError("Nothing to generate: give --images=N, --speech=N or --music=N.")
    start = time.monotonic()
    manifest = generate(_OUT.value, _SPLIT.value, _IMAGES.value, _SPEECH.value, _MUSIC.value, _SEED.value)
    print(f"wrote {manifest} in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    cli.run(main)
