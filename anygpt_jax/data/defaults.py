"""The config fields of `anygpt_jax.tokenize` and `anygpt_jax.pack`, and the objects that they describe."""

from collections.abc import Mapping
from typing import Any

from anygpt_tokenizers.codec import Codec, load_codec, shipped_codec
from ml_collections import config_dict

from anygpt_jax import vocabulary
from anygpt_jax.text import TextTokenizer

SMALL_WORLD_MEDIA = ("image", "speech", "music")


def get_config() -> config_dict.ConfigDict:
    """The small world's media; another one is one more entry of `codecs` and of `vocabulary.modalities`."""
    config = config_dict.ConfigDict()
    # Directory of each medium's codec; unset: the one shipped under the medium's name.
    config.codecs = {name: config_dict.placeholder(str) for name in SMALL_WORLD_MEDIA}
    config.vocabulary = {
        # "chat" or "base" takes a published layout; `modalities` and `control` are then not looked at.
        "published": "",
        # A SentencePiece model file, or shipped:NAME.
        "text_model": "shipped:smallworld",
        # max_seconds is the longest item: others are skipped or cropped (below), and no sampler writes more.
        "modalities": [
            {"name": "image"},
            {"name": "speech", "max_seconds": 6.0},
            {"name": "music", "max_seconds": 5.0},
        ],
        # Control tokens beyond those of the pair templates.
        "control": [],
        "pad_multiple": 128,
    }
    # A JSON file of instruction lists; empty: the shipped ones.
    config.instructions = ""
    # Media whose overlong items are cut to their beginning; others' are skipped, as their text would not fit.
    config.tokenize = {"crop": ("music",), "shard_size": 1024}
    # Tokens per row: 528 holds four music documents of the small world with little to spare. `repeats`: how
    # often each pair is packed in each direction, with a fresh instruction each time.
    config.pack = {"seq_len": 528, "repeats": 1, "seed": 0, "chat_template": "mmgpt-eos"}
    return config


def load_codecs(directories: Mapping[str, str | None], only: set[str] | None = None) -> dict[str, Codec]:
    """Codec per medium from `config.codecs`; `only` restricts to some media."""
    return {
        name: load_codec(directory) if directory else shipped_codec(name)
        for name, directory in directories.items()
        if only is None or name in only
    }


def build_vocabulary(
    config: Mapping[str, Any], codecs: Mapping[str, Codec]
) -> tuple[vocabulary.Vocabulary, TextTokenizer]:
    """Vocabulary and text tokenizer of `config.vocabulary`."""
    tokenizer = TextTokenizer(config["text_model"])
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    fields.pop("text_model")
    return vocabulary.from_config(fields, tokenizer, codecs), tokenizer
