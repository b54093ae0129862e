"""The programs that `compile_check --what` knows, by name."""

from collections.abc import Callable
from typing import Any

from anygpt_tokenizers.cli import UserError

from anygpt_jax.compilation.codec_check import (
    check_seed_encode,
    check_sound,
    check_unclip_decode,
)
from anygpt_jax.compilation.decode_check import check_decode
from anygpt_jax.compilation.train_check import check_train_step

Check = Callable[[Any, str, int | None, int | None], tuple[dict[str, Any], str]]


def _sound(codec: str, method: str) -> Check:
    return lambda config, topology, rows, length: check_sound(
        codec, method, topology, rows or 64, length or 10
    )


# name → (config, topology, rows, length) → report and program text. Rows and length are None where the user
# gave none.
PROGRAMS: dict[str, Check] = {
    "train": lambda config, topology, rows, length: check_train_step(config, topology),
    "decode": lambda config, topology, rows, length: check_decode(
        config, topology, rows or 8, length or 2048
    ),
    "speechtokenizer-encode": _sound("SpeechTokenizer", "encode"),
    "speechtokenizer-decode": _sound("SpeechTokenizer", "decode"),
    "encodec-encode": _sound("EnCodec", "encode"),
    "encodec-decode": _sound("EnCodec", "decode"),
    "seed-encode": lambda config, topology, rows, length: check_seed_encode(topology, rows or 64),
    "unclip-decode": lambda config, topology, rows, length: check_unclip_decode(
        topology, rows or 4, length or 20
    ),
}

# Flags that a program has no use for.
NOT_TAKEN = {"train": ("rows", "length"), "seed-encode": ("length",)}


def check_taken(flag: str, program: str) -> None:
    """UserError if `program` has no use for --rows or --length, whichever `flag` is."""
    if flag not in NOT_TAKEN.get(program, ()):
        return
    takers = ", ".join(name for name in PROGRAMS if flag not in NOT_TAKEN.get(name, ()))
    own = {"rows": "data.batch_size", "length": "pack.seq_len"}[flag]
    instead = f"give a train step's as --config.{own}" if program == "train" else "leave it out"
    raise UserError(f"--{flag} is for --what={takers}, not for --what={program}; {instead}.")
