"""The small world's text model: a SentencePiece BPE model with LLaMA's settings and 768 rows.

Its training text is every word of the small world and of the instruction lists, so that each is one piece;
anything else falls apart into shorter pieces and bytes. The shipped model is made by

    python -m anygpt_jax.smallworld.text_model --out=anygpt_jax/assets/smallworld.model

and comes out the same, byte for byte, each time.
"""

import io

import sentencepiece
from absl import flags
from anygpt_tokenizers import cli

from anygpt_jax import prompts
from anygpt_jax.smallworld import captions

NUM_PIECES = 768
# Single letters are merged often enough to give whole words only if every word is much more frequent than
# they are.
WORD_COUNT = 20
OTHER_TEXT = (":", "  ", prompts.PAIR_CUE, prompts.CHAT_TEMPLATES["mmgpt-eos"].system)


def training_lines() -> list[str]:
    """What the model is trained on: words, then each printable ASCII character once."""
    instructions = prompts.load_instructions()
    words = {word for text in instructions.all() for word in text.split() if "{" not in word}
    bare = {word.rstrip(".?") for word in words}
    lines = [*sorted(words | bare), *captions.words(), *OTHER_TEXT]
    return [line for line in lines for _ in range(WORD_COUNT)] + [chr(code) for code in range(33, 127)]


def train_text_model() -> bytes:
    """The model file's bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(training_lines()),
        model_writer=model,
        vocab_size=NUM_PIECES,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main(_: list[str]) -> None:
    """Writes the model to --out."""
    with open(flags.FLAGS.out, "wb") as file:
        file.write(train_text_model())


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "file to write", required=True)
    cli.run(main)
