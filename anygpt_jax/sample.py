"""Asks a model: text to pictures, speech or music, and back.

    python -m anygpt_jax.sample "text|image|a small red circle" "text|speech|draw a blue square"
    python -m anygpt_jax.sample --workdir=runs/quickstart/model "image|text|picture.png"

Each argument is one request, `source|target|content`; content is a text or the path of a file. Where a model
speaks through SoundStorm, `text|speech|content|voice.wav` is spoken in the voice of that file. Without
arguments, requests are read line by line until `quit`. Media are written to --out.
"""

import sys

from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import shipped
from anygpt_jax.sampling.generator import DECODINGS, Generator
from anygpt_jax.sampling.sampler import Decoding
from anygpt_jax.vocabulary import TEXT

_WORKDIR = flags.DEFINE_string("workdir", shipped.SHIPPED, "A training run, or 'shipped'.")
_STEP = flags.DEFINE_integer("step", None, "Checkpoint step; by default the newest.", lower_bound=0)
_OUT = flags.DEFINE_string("out", "samples", "Folder for pictures and sound.")
_SEED = flags.DEFINE_integer("seed", 0, "Another seed gives another answer.")
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 is greedy; default by medium.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k likeliest tokens; 0 is off.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", None, "Draw from the likeliest tokens with this mass.", 0.0, 1.0)
_INSTRUCTION = flags.DEFINE_string("instruction", None, "Instruction in the prompt; by default a random one.")


def main(requests: list[str]) -> int:
    """Answers the requests, or those typed on the terminal."""
    model = shipped.open_model(_WORKDIR.value, _STEP.value)
    if _WORKDIR.value == shipped.SHIPPED:
        print("(the small-world model that comes with the package)", file=sys.stderr)
    generator = Generator(model)
    if not requests:
        return converse(generator)
    for line in requests:
        generator.parse_request(line)  # a mistake in the last request shows before the first is answered
    for line in requests:
        answer(generator, line)
    return 0


def converse(generator: Generator) -> int:
    """Reads requests until `quit` or the end of the input; a mistake is printed and the next line read."""
    while True:
        try:
            line = input("source|target|content> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        if line == "quit":
            return 0
        if not line:
            continue
        try:
            answer(generator, line)
        except cli.UserError as error:
            print(f"error: {error}", file=sys.stderr)


def answer(generator: Generator, line: str) -> None:
    """Answers one request and prints its text or the path of its file."""
    result = generator.run(
        line, _OUT.value, _SEED.value, decoding=_decoding(generator, line), instruction=_INSTRUCTION.value
    )
    print(result.text if result.path is None else result.path, flush=True)


def _decoding(generator: Generator, line: str) -> Decoding:
    """The defaults of the request's target with what the flags change."""
    target = generator.parse_request(line)[1]
    kind = TEXT if target == TEXT else generator.model.vocabulary.modality(target).kind
    default = DECODINGS[kind]

    def choose(flag, fallback):
        return fallback if flag.value is None else flag.value

    return Decoding(
        choose(_TEMPERATURE, default.temperature),
        choose(_TOP_K, default.top_k),
        choose(_TOP_P, default.top_p),
    )


if __name__ == "__main__":
    cli.run(main)
