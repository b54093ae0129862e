"""Weights in and out.

    python -m anygpt_jax.convert import-hf --src=HF_DIR --out=CKPT_DIR [--vocabulary=chat]
    python -m anygpt_jax.convert grow --src=HF_OR_CKPT_DIR --vocabulary=base --out=CKPT_DIR
    python -m anygpt_jax.convert export-hf --ckpt=CKPT_DIR --out=HF_DIR
    python -m anygpt_jax.convert import-speechtokenizer --ckpt=FILE --config=FILE --out=CODEC_DIR
    python -m anygpt_jax.convert import-encodec --src=HF_DIR --out=CODEC_DIR
    python -m anygpt_jax.convert import-soundstorm --ckpt=FILE --out=CODEC_DIR/soundstorm
    python -m anygpt_jax.convert import-seed --quantizer=seed_quantizer.pt --vit=eva_vit_g.pth --out=CODEC_DIR
    python -m anygpt_jax.convert import-unclip --src=DIFFUSERS_DIR --out=CODEC_DIR/unclip
    python -m anygpt_jax.convert import-maskgit --src=tokenizer_imagenet256_checkpoint --out=CODEC_DIR

CODEC_DIR is what --config.codecs.NAME takes, or CKPT_DIR/codecs/NAME for an imported model. CKPT_DIR is a
working directory: sample from it with --workdir, train from it with --config.init_from; one that is read may
be in a bucket (gs://…). HF_DIR is a Hugging Face directory. What is written is there whole or not at all.
"""

import dataclasses
from collections.abc import Callable

import jax
from absl import flags
from anygpt_tokenizers import cli
from anygpt_tokenizers.codec import Codec
from anygpt_tokenizers.importers import import_encodec, import_speechtokenizer
from anygpt_tokenizers.maskgit_importer import import_maskgit
from anygpt_tokenizers.seed_importer import import_seed
from anygpt_tokenizers.soundstorm_importer import import_soundstorm
from anygpt_tokenizers.unclip_importer import import_unclip

from anygpt_jax import convert
from anygpt_jax.model.config import DecoderConfig

_SRC = flags.DEFINE_string("src", None, "Directory or file to read.")
_CKPT = flags.DEFINE_string("ckpt", None, "Working directory to export, or a codec's weights file.")
_CONFIG = flags.DEFINE_string("config", None, "SpeechTokenizer's config.json.")
_QUANTIZER = flags.DEFINE_string("quantizer", None, "SEED-2's seed_quantizer.pt.")
_VIT = flags.DEFINE_string("vit", None, "SEED-2's vision tower: eva_vit_g.pth, or a BLIP-2 HF directory.")
_NUM_CODEBOOKS = flags.DEFINE_integer("num_codebooks", None, "Levels that an imported codec uses.", 1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 256, "MaskGIT's pictures, 256 or 512 pixels.", 1)
_OUT = flags.DEFINE_string("out", None, "Directory to write; it must not exist yet, or be empty.")
_VOCABULARY = flags.DEFINE_string(
    "vocabulary", None, "base, chat, a vocabulary.json or a directory with one."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to export; by default the newest.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Of new vocabulary rows.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ("float32", "float16", "bfloat16"), "export: of the weights; otherwise: of activations."
)
_PARAM_DTYPE = flags.DEFINE_enum("param_dtype", None, ("float32", "bfloat16"), "Of the stored parameters.")
_MAX_POSITIONS = flags.DEFINE_integer(
    "max_positions", None, "Longest row that an export allows; by default as trained, at least 4,096.", 1
)
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest weights file of an export, 10⁹ bytes.", 0.001)


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: the flags it cannot do without, and what it does (it returns a line to print)."""

    needs: tuple[flags.FlagHolder, ...]
    run: Callable[[], str]


def _import_hf() -> str:
    config = convert.import_hf(
        _SRC.value,
        _OUT.value,
        _VOCABULARY.value,
        _DTYPE.value or "float32",
        _PARAM_DTYPE.value or "float32",
    )
    return _summary(config)


def _grow() -> str:
    config = convert.grow(
        _SRC.value, _VOCABULARY.value, _OUT.value, _SEED.value, _DTYPE.value, _PARAM_DTYPE.value
    )
    return _summary(config)


def _export_hf() -> str:
    shard = round(_SHARD_GB.value * 1e9)
    size = convert.export_hf(_CKPT.value, _OUT.value, _STEP.value, _DTYPE.value, shard, _MAX_POSITIONS.value)
    return f"{_OUT.value}: weights of {size / 1e6:,.1f} MB"


def _import_speechtokenizer() -> str:
    codec = import_speechtokenizer(_CKPT.value, _CONFIG.value, _OUT.value, _NUM_CODEBOOKS.value)
    return _codec_summary(codec)


def _import_encodec() -> str:
    return _codec_summary(import_encodec(_SRC.value, _OUT.value, num_codebooks=_NUM_CODEBOOKS.value))


def _import_soundstorm() -> str:
    model = import_soundstorm(_CKPT.value, _OUT.value)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    return f"{_OUT.value}: SoundStorm with {parameters:,} parameters"


def _import_seed() -> str:
    codec, report = import_seed(
        _QUANTIZER.value,
        _VIT.value,
        _OUT.value,
        _DTYPE.value or "float32",
        _PARAM_DTYPE.value or "float32",
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(codec.params))
    return (
        f"{_OUT.value}: SEED-2 with {parameters:,} parameters, {codec.fixed_frames} codes of "
        f"{codec.codebook_size} per picture\n{report}"
    )


def _import_unclip() -> str:
    config = import_unclip(_SRC.value, _OUT.value, _PARAM_DTYPE.value or "float32", _DTYPE.value or "float32")
    left_out = [
        f"{count} {what}" if isinstance(count, int) else f"{what} {', '.join(count)}"
        for what, count in config["left_out"].items()
        if count
    ]
    return (
        f"{_OUT.value}: unCLIP decoder in {config['dtype']}, schedule {config['schedule']}, "
        f"not needed and left out: {'; '.join(left_out) or 'nothing'}"
    )


def _import_maskgit() -> str:
    codec, report = import_maskgit(_SRC.value, _OUT.value, _IMAGE_SIZE.value)
    return (
        f"{_OUT.value}: {codec.fixed_frames} codes of {codec.codebook_size} per picture of "
        f"{codec.image_size} × {codec.image_size}\n{report}"
    )


def _codec_summary(codec: Codec) -> str:
    return (
        f"{_OUT.value}: {codec.modality} at {codec.sample_rate} Hz, {codec.frame_rate:g} frames/s of "
        f"{codec.num_codebooks} codes of {codec.codebook_size}"
    )


def _summary(config: DecoderConfig) -> str:
    return (
        f"{_OUT.value}: {config.num_layers} layers, {config.num_real_rows} vocabulary rows, stored with "
        f"{config.vocab_size}"
    )


# Another importer is one more entry.
COMMANDS = {
    "import-hf": Command((_SRC, _OUT), _import_hf),
    "export-hf": Command((_CKPT, _OUT), _export_hf),
    "grow": Command((_SRC, _VOCABULARY, _OUT), _grow),
    "import-speechtokenizer": Command((_CKPT, _CONFIG, _OUT), _import_speechtokenizer),
    "import-encodec": Command((_SRC, _OUT), _import_encodec),
    "import-soundstorm": Command((_CKPT, _OUT), _import_soundstorm),
    "import-seed": Command((_QUANTIZER, _OUT), _import_seed),
    "import-unclip": Command((_SRC, _OUT), _import_unclip),
    "import-maskgit": Command((_SRC, _OUT), _import_maskgit),
}


def main(positional: list[str]) -> None:
    """Runs the subcommand that is named first."""
    if not positional or positional[0] not in COMMANDS:
        given = f"{positional[0]!r} is no subcommand" if positional else "There is no subcommand"
        raise cli.UserError(f"{given}; choose {', '.join(COMMANDS)}.")
    if len(positional) > 1:
        raise cli.UserError(f"Unexpected argument {positional[1]!r}; give everything as --flag=value.")
    command = COMMANDS[positional[0]]
    for flag in command.needs:
        if flag.value is None:
            raise cli.UserError(f"{positional[0]} needs --{flag.name}.")
    jax.config.update("jax_platforms", "cpu")  # arrays go from file to file, never to an accelerator
    print(command.run())


if __name__ == "__main__":
    cli.run(main)
