"""SoundStorm (Borsos et al. 2023): from level 0 of SpeechTokenizer, what is said, to all 8 levels.

Masked parallel decoding: the first acoustic level in a few passes of the network, the others in one each.

Mode "reference" does what the original code does, its quirks included: the passes of the first level rank the
entries of all levels and of the prompt together, the prompt's acoustic codes are overwritten from the second
level on, and the temperature rises from 0 to 1. Mode "corrected" ranks the first level's new entries among
themselves, keeps the prompt, lets the temperature fall, and masks what lies after a row's end.
"""

import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from anygpt_tokenizers import codec
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.soundstorm_net import SoundStormNet, SoundStormSpec, shapes_of

TINY = 1e-10  # what the original adds inside logarithms, and its lowest temperature


@dataclasses.dataclass(frozen=True)
class Options:
    """How to decode.

    Attributes:
      steps: of the first level; it takes steps + 1 passes in mode "reference", else `steps`.
      greedy: the likeliest code wherever the mode allows it (everywhere in mode "corrected").
      mode: "corrected" or "reference".
      dropped: share of the codes, the least likely ones, that are never drawn.
      temperature: at which mode "corrected" starts.
    """

    steps: int = 8
    greedy: bool = True
    mode: str = "corrected"
    dropped: float = 0.7
    temperature: float = 1.0

    def __post_init__(self):
        if self.mode not in ("corrected", "reference"):
            raise UserError(f"SoundStorm decodes in mode 'corrected' or 'reference', not {self.mode!r}.")
        if self.steps < 1:
            raise UserError(f"SoundStorm needs at least one step, not {self.steps}.")
        if not 0 <= self.dropped < 1:
            raise UserError(f"`dropped` is a share of the codes from 0 to below 1, not {self.dropped}.")


class State(NamedTuple):
    """Codes [B, N, levels] so far, and which of them are unknown (bool)."""

    codes: jax.Array
    unknown: jax.Array


def checked(
    spec: SoundStormSpec,
    semantic: np.ndarray,
    prompt: np.ndarray | None,
    lengths: np.ndarray | None,
    options: Options,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `generate` as int32 arrays; UserError where they don't fit the model."""
    semantic = np.asarray(semantic)
    if semantic.ndim != 2 or semantic.size == 0:
        raise UserError(
            f"SoundStorm takes semantic codes of shape [batch, frames], not {list(semantic.shape)}."
        )
    prompt = np.zeros((len(semantic), 0, 1 + spec.levels), int) if prompt is None else np.asarray(prompt)
    if prompt.ndim != 3 or prompt.shape[::2] != (len(semantic), 1 + spec.levels):
        raise UserError(
            f"A voice prompt has the shape [{len(semantic)}, frames, {1 + spec.levels}], "
            f"not {list(prompt.shape)}."
        )
    for name, codes, size in [
        ("semantic", semantic, spec.semantic_size),
        ("prompt", prompt[..., 0], spec.semantic_size),
        ("prompt", prompt[..., 1:], spec.codebook_size),
    ]:
        if codes.dtype.kind not in "iu":
            raise UserError(f"The {name} codes are whole numbers, not {codes.dtype}.")
        wrong = np.argwhere((codes < 0) | (codes >= size))
        if len(wrong):
            place, value = wrong[0].tolist(), codes[tuple(wrong[0])]
            raise UserError(f"The {name} code at {place} is {value}; codes lie in 0..{size - 1}.")
    if lengths is not None and options.mode == "reference":
        raise UserError(
            "Mode 'reference' knows no lengths; give rows of one length, or take mode 'corrected'."
        )
    lengths = np.full(len(semantic), semantic.shape[1]) if lengths is None else np.asarray(lengths)
    if lengths.shape != (len(semantic),) or not ((lengths >= 1) & (lengths <= semantic.shape[1])).all():
        raise UserError(f"`lengths` are {len(semantic)} numbers from 1 to {semantic.shape[1]}.")
    return semantic.astype(np.int32), prompt.astype(np.int32), lengths.astype(np.int32)


def kept_unknown(steps: int, total: int) -> list[int]:
    """How many of `total` entries stay unknown after each of steps + 1 passes: cos(π/2 · i / steps) of them.

    In float32, with the times counted from the nearer end, as torch.linspace does: the products often lie
    next to whole numbers, and another rounding keeps one entry less.
    """
    index, stride = np.arange(steps + 1), np.float64(np.float32(1) / np.float32(steps))
    times = np.where(2 * index < steps, stride * index, 1 - stride * (steps - index)).astype(np.float32)
    angles = times * np.float32(np.pi) / np.float32(2)
    share = np.cos(angles.astype(np.float64)).astype(np.float32)
    return (share * np.float32(total)).astype(int).tolist()


class SoundStorm:
    """Weights and network. Attributes: spec, params (float32), net; options, how it decodes by default."""

    def __init__(self, spec: SoundStormSpec, params: dict, options: Options = Options()):
        self.spec = spec
        self.params = params
        self.options = options
        self.net = SoundStormNet(spec)

    @functools.cached_property
    def weights(self) -> dict:
        """The parameters on the device."""
        with jax.ensure_compile_time_eval():  # real arrays also when first asked for inside a jitted function
            return jax.device_put(self.params)

    def generate(
        self,
        semantic: np.ndarray,
        prompt: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        seed: int = 0,
        **options,
    ) -> np.ndarray:
        """Semantic codes [B, L] -> codes int32 [B, L, 1 + levels], level 0 being the semantic one.

        Args:
          semantic: of SpeechTokenizer's level 0.
          prompt: codes [B, P, 1 + levels] of a voice to continue in.
          lengths: [B], how much of each row of `semantic` counts; not with mode "reference".
          seed: of the noise, where `greedy` is off.
          options: fields of `Options` that differ from the model's own.
        """
        options = dataclasses.replace(self.options, **options)
        arrays = checked(self.spec, semantic, prompt, lengths, options)
        return np.asarray(generate(self.net, self.weights, *arrays, jax.random.key(seed), options))

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes config.json and weights.safetensors."""
        flat = traverse_util.flatten_dict(self.params, sep="/")
        stored = {name: np.ascontiguousarray(value, np.float32) for name, value in flat.items()}
        config = {
            "type": "soundstorm",
            **dataclasses.asdict(self.spec),
            "decoding": dataclasses.asdict(self.options),
        }
        codec.write_directory(Path(directory), config, safetensors.numpy.save(stored))

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Reads what `save_pretrained` wrote; UserError if config and weights don't belong together."""
        config, params = codec.read_directory(Path(directory))
        if config.pop("type", None) != "soundstorm":
            raise UserError(f"{directory} holds no SoundStorm; import one with import-soundstorm.")
        with codec.config_mistakes(Path(directory)):
            options = Options(**config.pop("decoding", {}))
            spec = SoundStormSpec(**config)
            codec.check_shapes(params, shapes_of(spec), directory)
        return cls(spec, params, options)


@functools.partial(jax.jit, static_argnums=(0, 6))
def generate(
    net: SoundStormNet,
    params: dict,
    semantic: jax.Array,
    prompt: jax.Array,
    lengths: jax.Array,
    rng: jax.Array,
    options: Options,
    noise: jax.Array | None = None,
) -> jax.Array:
    """Semantic codes [B, L], prompt [B, P, 1 + levels] -> codes [B, L, 1 + levels], zeros after `lengths`.

    `noise` [passes, B, P + L, levels, codebook_size] replaces the Gumbel noise drawn from `rng`.
    """
    spec = net.spec
    start, size = prompt.shape[1], prompt.shape[1] + semantic.shape[1]
    condition = jnp.concatenate([prompt[..., 0], semantic], axis=1)
    valid = jnp.arange(size) < start + lengths[:, None]
    new = (valid & (jnp.arange(size) >= start))[..., None]  # [B, N, 1]
    acoustic = jnp.pad(prompt[..., 1:], ((0, 0), (0, semantic.shape[1]), (0, 0)))
    state = State(jnp.where(new, spec.codebook_size, acoustic), jnp.broadcast_to(new, acoustic.shape))

    def logits_of(codes: jax.Array) -> jax.Array:
        return net.apply({"params": params}, codes, condition, valid)

    def gumbel(index: jax.Array) -> jax.Array:
        if noise is not None:
            return noise[index]
        shape = (*acoustic.shape, spec.codebook_size)
        uniform = jax.random.uniform(jax.random.fold_in(rng, index), shape)
        return -jnp.log(-jnp.log(uniform + TINY) + TINY)

    first_level = _first_level_reference if options.mode == "reference" else _first_level_corrected
    codes = first_level(state, new, logits_of, gumbel, options, spec)

    def next_level(level: jax.Array, codes: jax.Array) -> jax.Array:
        later = jnp.arange(spec.levels) >= level
        if options.mode == "reference":  # the prompt's too
            return jnp.where(later, logits_of(codes).argmax(-1), codes)
        codes = jnp.where(new & later, spec.codebook_size, codes)
        return jnp.where(new & (jnp.arange(spec.levels) == level), logits_of(codes).argmax(-1), codes)

    codes = jax.lax.fori_loop(1, spec.levels, next_level, codes)
    result = jnp.concatenate([semantic[..., None], codes[:, start:]], axis=-1)
    return jnp.where(new[:, start:], result, 0).astype(jnp.int32)


def _first_level_reference(state, new, logits_of, gumbel, options, spec) -> jax.Array:
    """Codes [B, N, levels] after the passes of the first level, as the original code does them.

    Passes that keep nothing unknown leave the mask alone: each tells anew what the first of them told.
    """
    batch, size, levels = state.codes.shape

    def one_pass(state: State, inputs: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        index, keep = inputs
        all_logits = logits_of(state.codes)
        logits = _likely(all_logits, options.dropped)
        chosen = _draw(logits, gumbel(index), index / options.steps)
        if options.greedy:
            chosen = jnp.where(keep == 0, all_logits.argmax(-1), chosen)
        codes = jnp.where(state.unknown, chosen, state.codes)
        doubt = 1 - jnp.take_along_axis(jax.nn.softmax(logits), chosen[..., None], -1)[..., 0]
        unknown = _rank(doubt.reshape(batch, -1)).reshape(doubt.shape) < keep
        unknown = (unknown | (jnp.arange(levels) > 0)) & new
        masked = State(jnp.where(unknown, spec.codebook_size, codes), unknown)
        told = State(codes, state.unknown)
        return jax.tree.map(lambda a, b: jnp.where(keep > 0, a, b), masked, told), None

    passes = jnp.arange(options.steps + 1), jnp.asarray(kept_unknown(options.steps, size))
    return jax.lax.scan(one_pass, state, passes)[0].codes


def _first_level_corrected(state, new, logits_of, gumbel, options, spec) -> jax.Array:
    """As above, ranking only the level's own new entries, row by row, while the temperature falls."""
    total = new[..., 0].sum(-1)  # [B]

    def one_pass(index: jax.Array, state: State) -> State:
        logits = _likely(logits_of(state.codes)[:, :, 0], options.dropped)
        temperature = 0.0 if options.greedy else options.temperature * (1 - index / options.steps)
        chosen = _draw(logits, gumbel(index)[:, :, 0], temperature)
        certainty = jnp.take_along_axis(jax.nn.softmax(logits), chosen[..., None], -1)[..., 0]
        known = jnp.where(state.unknown[..., 0], chosen, state.codes[..., 0])
        doubt = jnp.where(state.unknown[..., 0], 1 - certainty, -1.0)  # what is known stays known
        keep = jnp.floor(jnp.cos(jnp.pi / 2 * (index + 1) / options.steps) * total + 1e-4)
        unknown = (_rank(doubt) < keep[:, None]) & state.unknown[..., 0]
        codes = state.codes.at[..., 0].set(jnp.where(unknown, spec.codebook_size, known))
        return State(codes, state.unknown.at[..., 0].set(unknown))

    return jax.lax.fori_loop(0, options.steps, one_pass, state).codes


def _likely(logits: jax.Array, dropped: float) -> jax.Array:
    """The least likely share of the logits [..., C] set to -inf."""
    keep = math.ceil((1 - dropped) * logits.shape[-1])
    least = jax.lax.top_k(logits, keep)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def _draw(logits: jax.Array, noise: jax.Array, temperature: jax.Array | float) -> jax.Array:
    return (logits / jnp.maximum(temperature, TINY) + noise).argmax(-1)


def _rank(scores: jax.Array) -> jax.Array:
    """Place of each of scores [B, M] in descending order; equal ones keep their order."""
    return jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1)
