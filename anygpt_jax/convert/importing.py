"""Into the project's checkpoints: Hugging Face directories, and a vocabulary's new rows."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers.cli import UserError
from tqdm import tqdm

from anygpt_jax import checkpoint, integrity, storage
from anygpt_jax.convert import hf_source, store, tokens
from anygpt_jax.convert.layout import TABLES, Tensor, tensors
from anygpt_jax.convert.staging import new_directory
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary

# Of new rows in both tables: the released training code's (protocol: Hugging Face's initializer_range).
NEW_ROW_SCALE = 0.02


def import_hf(
    src: str | os.PathLike,
    out: str | os.PathLike,
    vocabulary: str | None = None,
    dtype: str = "float32",
    param_dtype: str = "float32",
) -> DecoderConfig:
    """Converts a LLaMA directory (LLaMA-2, AnyGPT-base, AnyGPT-chat) to a checkpoint at step 0.

    Args:
      src: config.json, tokenizer.model, added_tokens.json if there are added tokens, and the weights as
        safetensors or torch files.
      out: a new working directory, for `sample`, for `grow`, or as `init_from` of a training.
      vocabulary: what the rows are to mean: "base", "chat", a vocabulary.json or a directory with one. It
        must agree with the tokens that `src` names; it adds facts about codecs, or stands in where `src`
        names none. By default what `src` says.
      dtype: of activations. param_dtype: of the stored parameters.
    Returns:
      The model's config. Raises a UserError that names the file, tensor or id that does not fit.
    """
    src = os.fspath(src)
    if not os.path.isdir(src):
        raise UserError(f"There is no directory {src!r}; give a Hugging Face directory as --src=DIR.")
    tokenizer = TextTokenizer(os.path.join(src, tokens.TEXT_MODEL))
    fields = hf_source.model_fields(src)
    vocab = _vocabulary_for(src, tokenizer, vocabulary)
    if vocab.size != fields["num_real_rows"]:
        raise UserError(
            f"{src}: config.json counts {fields['num_real_rows']} vocabulary rows, and the tokenizer's files "
            f"name {vocab.size}; if they lack the added tokens, give --vocabulary=base or chat."
        )
    config = DecoderConfig(vocab_size=vocab.padded_size, dtype=dtype, param_dtype=param_dtype, **fields)
    weights = hf_source.Weights(src)
    wanted = list(tensors(config))
    weights.check(wanted)
    _write(out, config, vocab, tokenizer, weights.in_file_order(wanted), lambda t: weights.read(t.name))
    return config


def _vocabulary_for(src: str, tokenizer: TextTokenizer, named: str | None) -> Vocabulary:
    if named is None:
        return tokens.vocabulary_of(src, tokenizer)
    vocab = tokens.named_vocabulary(named, tokenizer)
    if tokens.added_tokens(src, tokenizer.size):
        tokens.check_rows(tokens.vocabulary_of(src, tokenizer), vocab, src, f"the vocabulary {named}")
    return vocab


def grow(
    src: str | os.PathLike,
    vocabulary: str,
    out: str | os.PathLike,
    seed: int = 0,
    dtype: str | None = None,
    param_dtype: str | None = None,
) -> DecoderConfig:
    """Gives a checkpoint the rows of a larger vocabulary: LLaMA-2 becomes the start of the first stage.

    Old rows are copied; new ones of both tables are normal with standard deviation 0.02.

    Args:
      src: a Hugging Face directory, or a working directory of this project (its newest checkpoint).
      vocabulary: "base", "chat", a vocabulary.json or a directory with one; it must begin with all of src's.
      out: a new working directory. seed: of the new rows.
      dtype, param_dtype: of activations and of stored parameters; by default src's, float32 for one of
        Hugging Face's.
    Returns:
      The grown model's config.
    """
    src = os.fspath(src)
    source = _open_source(src)
    vocab = tokens.named_vocabulary(vocabulary, source.tokenizer)
    _check_extends(source.vocabulary, vocab, src, vocabulary)
    config = dataclasses.replace(
        source.config,
        vocab_size=vocab.padded_size,
        num_real_rows=vocab.size,
        dtype=dtype or source.config.dtype,
        param_dtype=param_dtype or source.config.param_dtype,
    )
    old = {(tensor.path, tensor.layer): tensor for tensor in tensors(source.config)}
    count = vocab.size - source.vocabulary.size

    def read(tensor: Tensor) -> np.ndarray:
        value = source.read(old[tensor.path, tensor.layer])
        if tensor.path not in TABLES:
            return value
        rng = np.random.default_rng((seed, TABLES[tensor.path]))
        new = rng.standard_normal((count, config.embed_dim), np.float32) * np.float32(NEW_ROW_SCALE)
        return np.concatenate([np.asarray(value, np.float32), new])  # theirs: rows are on axis 0 in both

    _write(out, config, vocab, source.tokenizer, source.order(list(tensors(config))), read)
    return config


@dataclasses.dataclass(frozen=True)
class _Source:
    """What `grow` starts from; `read` gives a tensor as Hugging Face shapes it."""

    config: DecoderConfig
    vocabulary: Vocabulary
    tokenizer: TextTokenizer
    read: Callable[[Tensor], np.ndarray]
    order: Callable[[list[Tensor]], list[Tensor]]


def _open_source(src: str) -> _Source:
    if (storage.locate(src) / checkpoint.CHECKPOINTS).is_dir():
        config, vocab, tokenizer, step = checkpoint.describe_model(src)
        params = store.ParameterStore(src, step)
        return _Source(
            config, vocab, tokenizer, lambda tensor: read_stored(params, tensor), lambda wanted: wanted
        )
    if not os.path.isdir(src):
        raise UserError(f"There is no directory {src!r}; give a checkpoint or Hugging Face one as --src.")
    tokenizer = TextTokenizer(os.path.join(src, tokens.TEXT_MODEL))
    vocab = tokens.vocabulary_of(src, tokenizer)
    config = DecoderConfig(vocab_size=vocab.padded_size, **hf_source.model_fields(src))
    weights = hf_source.Weights(src)
    weights.check(list(tensors(config)))
    return _Source(config, vocab, tokenizer, lambda t: weights.read(t.name), weights.in_file_order)


def read_stored(params: store.ParameterStore, tensor: Tensor) -> np.ndarray:
    """A tensor of a checkpoint as Hugging Face shapes it, without the padding of the tables."""
    array = params[tensor.path]
    if tensor.layer is not None:
        array = array[tensor.layer]
    return tensor.to_theirs(array[tuple(slice(0, size) for size in tensor.slice_shape)].read().result())


def _check_extends(old: Vocabulary, new: Vocabulary, here: str, there: str) -> None:
    for number in range(old.text_size, old.size):
        a, b = old.token_names[number], new.token_names.get(number)
        if a != b:
            raise UserError(
                f"Id {number} is {a!r} in {here} and {b!r} in the vocabulary {there}; rows are only appended."
            )


def _write(
    out: str | os.PathLike,
    config: DecoderConfig,
    vocab: Vocabulary,
    tokenizer: TextTokenizer,
    wanted: list[Tensor],
    read: Callable[[Tensor], np.ndarray],
) -> None:
    """The whole working directory, or nothing."""
    meta: dict[str, Any] = {"model": config.to_dict(), "vocabulary": vocab.to_json(), "config": {}}
    dtype = jnp.dtype(config.param_dtype)
    with new_directory(out) as partial:
        store.create_empty(partial, config, meta)
        params = store.ParameterStore(partial, step=0)
        for tensor in tqdm(wanted, desc="tensors", unit="tensor"):
            ours = tensor.to_ours(read(tensor)).astype(dtype, copy=False)
            array = params[tensor.path]
            index = () if tensor.layer is None else (tensor.layer,)
            array[(*index, *(slice(0, size) for size in tensor.slice_shape))].write(ours).result()
        tokenizer.save(os.path.join(partial, checkpoint.TEXT_MODEL))
        vocab.save(os.path.join(partial, checkpoint.VOCABULARY))
        integrity.record(partial, step=0)  # reads what was written, a few MB in memory at a time
