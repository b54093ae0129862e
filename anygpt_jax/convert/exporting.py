"""Out to Hugging Face: a directory that `from_pretrained`, vLLM and other readers of LLaMA load."""

import json
import math
import os
from typing import Any

import jax.numpy as jnp
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import DTYPES, SafetensorsWriter
from tqdm import tqdm

from anygpt_jax import checkpoint, vocabulary
from anygpt_jax.convert import tokens
from anygpt_jax.convert.importing import NEW_ROW_SCALE, read_stored
from anygpt_jax.convert.layout import Tensor, tensors
from anygpt_jax.convert.staging import new_directory
from anygpt_jax.convert.store import ParameterStore
from anygpt_jax.model.config import DecoderConfig

_INDEX = "model.safetensors.index.json"
_LEAST_POSITIONS = 4096  # LLaMA-2's, and so of what was imported and never trained here


def export_hf(
    ckpt: str | os.PathLike,
    out: str | os.PathLike,
    step: int | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
    max_positions: int | None = None,
) -> int:
    """Writes a checkpoint as a LLaMA directory: weights, config, tokenizer files; padding rows are dropped.

    Args:
      ckpt: a working directory (train, import-hf). out: a new directory.
      step: of the checkpoint, by default the newest.
      dtype: float32, float16 or bfloat16; by default as stored, and then every bit is kept.
      shard_bytes: largest size of a weights file.
      max_positions: what config.json and the tokenizer say, beyond which some readers cut; the decoder itself
        has no limit. By default the length of the rows that the checkpoint was trained on, at least 4,096.
    Returns:
      Bytes of all weights. Raises a UserError if the checkpoint or the step is not there.
    """
    config, vocab, tokenizer, step = checkpoint.describe_model(ckpt, step)
    dtype = dtype or config.param_dtype
    if jnp.dtype(dtype) not in DTYPES.values():
        raise UserError(f"Weights cannot be exported as {dtype!r}; choose float32, float16 or bfloat16.")
    max_positions = max_positions or _trained_positions(ckpt, step)
    params = ParameterStore(os.fspath(ckpt), step)
    wanted = list(tensors(config))
    files = _shards(wanted, jnp.dtype(dtype).itemsize, shard_bytes)
    with new_directory(out) as partial, tqdm(total=len(wanted), desc="tensors", unit="tensor") as bar:
        for file, members in files.items():
            shapes = {tensor.name: tensor.shape for tensor in members}
            writer = SafetensorsWriter(os.path.join(partial, file), shapes, jnp.dtype(dtype))
            for tensor in members:
                writer.write(tensor.name, read_stored(params, tensor))
                bar.update()
            writer.close()
        total = sum(math.prod(tensor.shape) for tensor in wanted) * jnp.dtype(dtype).itemsize
        if len(files) > 1:
            places = {tensor.name: file for file, members in files.items() for tensor in members}
            _write_json(partial, _INDEX, {"metadata": {"total_size": total}, "weight_map": places})
        _write_json(partial, "config.json", _hf_config(config, dtype, max_positions))
        ids = {
            "bos_token_id": vocabulary.BOS_ID,
            "eos_token_id": vocabulary.EOS_ID,
            "pad_token_id": vocabulary.PAD_ID,
        }
        _write_json(partial, "generation_config.json", ids)
        tokens.write_tokenizer(partial, vocab, tokenizer, max_positions)
    return total


def _trained_positions(ckpt: str | os.PathLike, step: int) -> int:
    trained = checkpoint.training_config(ckpt, step).get("pack", {})
    return max(_LEAST_POSITIONS, trained.get("seq_len", 0))


def _shards(wanted: list[Tensor], itemsize: int, shard_bytes: int) -> dict[str, list[Tensor]]:
    """File name → its tensors, none larger than `shard_bytes` unless one tensor is."""
    groups: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in wanted:
        size = math.prod(tensor.shape) * itemsize
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, start=1)}


def _hf_config(config: DecoderConfig, dtype: str, max_positions: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.num_real_rows,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": max_positions,
        "initializer_range": NEW_ROW_SCALE,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": vocabulary.BOS_ID,
        "eos_token_id": vocabulary.EOS_ID,
        "pad_token_id": vocabulary.PAD_ID,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _write_json(directory: str, name: str, value: dict[str, Any]) -> None:
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
