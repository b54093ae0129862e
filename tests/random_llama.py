"""Random Hugging Face LLaMA directories, written without torch."""

import json
from pathlib import Path

import numpy as np
from anygpt_tokenizers.safetensors_file import SafetensorsWriter

from anygpt_jax import vocabulary
from anygpt_jax.convert.layout import tensors
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.text import TextTokenizer


def tokenizer() -> TextTokenizer:
    return TextTokenizer("shipped:smallworld")


def media_vocabulary(control_first: int = 4) -> vocabulary.Vocabulary:
    """The shipped text model's rows, control tokens and the published speech codes."""
    text = tokenizer()
    speech = vocabulary.published("chat").modalities["speech"]
    return vocabulary.from_text_model(text.size, text.hash).extend(
        [*vocabulary.CONTROL_TOKENS[:control_first], speech]
    )


def decoder_config(vocab: vocabulary.Vocabulary, num_kv_heads: int = 2, **changes) -> DecoderConfig:
    """Two layers, four heads of 16."""
    sizes = {"embed_dim": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": num_kv_heads}
    sizes |= {"head_dim": 16, "hidden_dim": 96, **changes}
    return DecoderConfig(vocab_size=vocab.padded_size, num_real_rows=vocab.size, **sizes)


def hf_config(config: DecoderConfig) -> dict:
    """What config.json says of such a decoder."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.num_real_rows,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": False,
    }


def write_llama(
    directory: Path,
    vocab: vocabulary.Vocabulary,
    config: DecoderConfig,
    files: int = 2,
    dtype: str = "float32",
    scale: float = 0.2,
) -> dict[str, np.ndarray]:
    """A directory of `files` safetensors shards; returns what is in them where that is small."""
    directory.mkdir(parents=True)
    write_settings(directory, vocab, config)
    wanted = list(tensors(config))
    rng = np.random.default_rng(0)
    values, places = {}, {}
    for index in range(files):
        members = wanted[index::files]
        name = f"model-{index + 1:05}-of-{files:05}.safetensors" if files > 1 else "model.safetensors"
        shapes = {tensor.name: tensor.shape for tensor in members}
        writer = SafetensorsWriter(directory / name, shapes, np.dtype(dtype))
        for tensor in members:
            value = rng.standard_normal(tensor.shape, np.float32) * np.float32(scale)
            value = (1 + value if len(tensor.shape) == 1 else value).astype(dtype)
            writer.write(tensor.name, value)
            places[tensor.name] = name
            if value.size < 10**6:
                values[tensor.name] = value
        writer.close()
    if files > 1:
        index = {"metadata": {}, "weight_map": places}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return values


def write_settings(directory: Path, vocab: vocabulary.Vocabulary, config: DecoderConfig) -> None:
    """config.json, tokenizer.model and added_tokens.json."""
    (directory / "config.json").write_text(json.dumps(hf_config(config)))
    tokenizer().save(directory / "tokenizer.model")
    if vocab.size > vocab.text_size:
        (directory / "added_tokens.json").write_text(json.dumps(vocab.token_strings))
