"""Stable unCLIP 2.1: a CLIP-H image embedding -> a picture that shows what it says (Ramesh et al. 2022).

The embedding is slightly noised, and with its noise level is the class label of a latent diffusion; the
guidance compares with an empty label, and both attend to the same (empty) text. Checkpoint: Stability AI's
stable-diffusion-2-1-unclip, by way of `unclip_importer`. Images are NHWC.

AnyGPT's decoder has no strength option, because diffusion always starts from pure noise; how closely a
picture follows its embedding is up to `guidance_scale` and `noise_level`.
"""

import functools
import numbers
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from anygpt_tokenizers import diffusion_schedules as schedules
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import config_mistakes
from anygpt_tokenizers.diffusion_layers import sinusoid
from anygpt_tokenizers.meshes import OnDividedMesh
from anygpt_tokenizers.unclip_spec import DTYPES, OLD_DTYPE, UnclipSpec, open_directory
from anygpt_tokenizers.unclip_unet import UNet
from anygpt_tokenizers.unclip_vae import VaeDecoder, to_pixels

NEGATIVE_LEVEL = 0  # of negative embeddings' noise in AnyGPT's pipeline, whatever that of the others is
ROWS = 4  # pictures per device in one call of the program
LARGEST_SCALE = float(np.finfo(np.float32).max)


class Inputs(NamedTuple):
    """What `generate` makes pictures of; all float32 with the batch in front.

    embeddings, noise: [B, D], the image embeddings and what they are noised with.
    negatives, negative_noise: [B, D], the same for what to stay away from; None for no label at all.
    latents: [B, H, W, C] to start from.
    text: [B, T, E] to attend to; None for the empty prompt.
    """

    embeddings: jax.Array
    noise: jax.Array
    negatives: jax.Array | None
    negative_noise: jax.Array | None
    latents: jax.Array
    text: jax.Array | None


def abstract_params(spec: UnclipSpec) -> dict:
    """Shapes of the parameters: unet, vae, normalizer and empty_prompt."""
    latents = jax.ShapeDtypeStruct((1, *spec.latent_shape), jnp.float32)
    text = jax.ShapeDtypeStruct((1, spec.text.positions, spec.unet.text_dim), jnp.float32)
    label = jax.ShapeDtypeStruct((1, spec.unet.class_dim), jnp.float32)
    time = jax.ShapeDtypeStruct((1,), jnp.int32)
    unet = jax.eval_shape(UNet(spec.unet).init, jax.random.key(0), latents, time, text, label)
    vae = jax.eval_shape(VaeDecoder(spec.vae).init, jax.random.key(0), latents)
    row = jax.ShapeDtypeStruct((spec.embedding_dim,), jnp.float32)
    return {
        "unet": unet["params"],
        "vae": vae["params"],
        "normalizer": {"mean": row, "std": row},
        "empty_prompt": jax.ShapeDtypeStruct(text.shape[1:], jnp.float32),
    }


def class_label(
    spec: UnclipSpec, normalizer: dict, embeddings: jax.Array, noise: jax.Array, level: jax.Array | int
) -> jax.Array:
    """Embeddings [B, D], noised to a level (int32 scalar) in the normalizer's units, and it: [B, 2D]."""
    share = jnp.asarray(schedules.signal(spec.embedding_noise))[level]
    scaled = (embeddings - normalizer["mean"]) / normalizer["std"]
    noised = jnp.sqrt(share) * scaled + jnp.sqrt(1 - share) * noise
    noised = noised * normalizer["std"] + normalizer["mean"]
    levels = sinusoid(jnp.broadcast_to(level, len(embeddings)), spec.embedding_dim)
    return jnp.concatenate([noised, levels], axis=-1)


def denoise(
    spec: UnclipSpec,
    dtype: jnp.dtype,
    params: dict,
    inputs: Inputs,
    table: schedules.Table,
    guidance: jax.Array | None,
    level: jax.Array,
    report: Callable[[jax.Array], None] | None = None,
    gathered: Callable[[dict], dict] = lambda params: params,
) -> jax.Array:
    """The latents [B, H, W, C] at the end of the schedule.

    Without `guidance` only the conditional prediction is made. `report` is called on the host with the number
    of every evaluation, `gathered` on the network's parameters where they are used.
    """
    state = schedules.start(inputs.latents)
    return evaluations(spec, dtype, params, inputs, state, table, guidance, level, report, gathered).latents


def evaluations(
    spec: UnclipSpec,
    dtype: jnp.dtype,
    params: dict,
    inputs: Inputs,
    state: schedules.State,
    table: schedules.Table,
    guidance: jax.Array | None,
    level: jax.Array,
    report: Callable[[jax.Array], None] | None = None,
    gathered: Callable[[dict], dict] = lambda params: params,
) -> schedules.State:
    """The state after the evaluations of a table, from any state on; arguments as of `denoise`."""
    unet = UNet(spec.unet, dtype)
    rows = len(inputs.embeddings)
    label = class_label(spec, params["normalizer"], inputs.embeddings, inputs.noise, level)
    empty = jnp.broadcast_to(params["empty_prompt"], (rows, *params["empty_prompt"].shape))
    text = empty if inputs.text is None else inputs.text
    if guidance is not None:
        if inputs.negatives is None:
            nothing = jnp.zeros_like(label)
        else:
            negatives = inputs.negatives, inputs.negative_noise
            nothing = class_label(spec, params["normalizer"], *negatives, NEGATIVE_LEVEL)
        label, text = _interleaved(nothing, label), _interleaved(empty, text)

    def evaluate(state: schedules.State, indexed: tuple) -> tuple[schedules.State, None]:
        index, row = indexed
        x = state.latents if guidance is None else _interleaved(state.latents, state.latents)
        time = jnp.broadcast_to(row.time, len(x))
        prediction = unet.apply({"params": gathered(params["unet"])}, x, time, text, label)
        if guidance is not None:
            prediction = prediction.reshape(rows, 2, *prediction.shape[1:])
            prediction = prediction[:, 0] + guidance * (prediction[:, 1] - prediction[:, 0])
        if report is not None:
            jax.debug.callback(report, index)
        return schedules.advance(state, row, prediction), None

    return jax.lax.scan(evaluate, state, (jnp.arange(len(table.time)), table))[0]


def generate(
    spec: UnclipSpec,
    dtype: jnp.dtype,
    params: dict,
    *arguments,
    gathered: Callable[[dict], dict] = lambda params: params,
) -> jax.Array:
    """Pictures uint8 [B, image_size, image_size, 3]; arguments as of `denoise`. One program, to be jitted."""
    latents = denoise(spec, dtype, params, *arguments, gathered=gathered)
    return to_pixels(VaeDecoder(spec.vae, dtype).apply({"params": gathered(params["vae"])}, latents))


def abstract_arguments(spec: UnclipSpec, rows: int, steps: int = 20, dtype: str = "bfloat16") -> tuple:
    """Shapes of what `generate` takes after spec and dtype, with guidance, for compiling without weights."""

    def stored(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, dtype if len(leaf.shape) > 1 else "float32")

    wide = jax.ShapeDtypeStruct((rows, spec.embedding_dim), jnp.float32)
    latents = jax.ShapeDtypeStruct((rows, *spec.latent_shape), jnp.float32)
    table = schedules.make_table(spec.schedule, spec.noise, steps)
    table = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype), table)
    guidance, level = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    inputs = Inputs(wide, wide, None, None, latents, None)
    return jax.tree.map(stored, abstract_params(spec)), inputs, table, guidance, level


class UnclipDecoder(OnDividedMesh):
    """Weights, and compiled programs that make pictures of image embeddings.

    Attributes:
      spec: sizes and conventions.
      params: unet, vae, normalizer and empty_prompt, as `abstract_params` lays them out; host arrays.
      dtype: "float32" or "bfloat16", what the networks compute in.
    """

    _made_for_mesh = ("weights", "_programs")

    def __init__(self, spec: UnclipSpec, params: dict, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise UserError(f"The unCLIP decoder computes in float32 or bfloat16, not in {dtype!r}.")
        self.spec, self.params, self.dtype = spec, params, dtype
        # The compiled program calls `_progress`, so one `decode` at a time has it.
        self._progress: Callable[[int], None] = lambda index: None
        self._progress_lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike, dtype: str | None = None) -> Self:
        """Reads what `import-unclip` wrote; the text encoder stays in its file.

        `dtype`: "float32" or "bfloat16"; None: the one that the directory was imported with, float32 where
        its config.json (of an earlier version) names none.
        """
        config, spec, weights = open_directory(directory)
        with config_mistakes(Path(directory)):
            wanted = traverse_util.flatten_dict(abstract_params(spec), sep="/")
        wrong = [name for name in wanted if np.shape(weights.get(name)) != wanted[name].shape]
        if wrong:
            raise UserError(f"{directory} lacks {wrong[0]!r} in its config's shape; import it again.")
        params = traverse_util.unflatten_dict({name: weights[name] for name in wanted}, sep="/")
        return cls(spec, params, dtype or config.get("dtype", OLD_DTYPE))

    @functools.cached_property
    def weights(self) -> dict:
        """The parameters on the devices, matrices in the dtype that they are used in."""

        def place(path: tuple, leaf: np.ndarray) -> jax.Array:
            array = np.asarray(leaf, self.dtype if np.ndim(leaf) > 1 else "float32")
            kernel = path[-1].key == "kernel"
            return jax.device_put(array, self.kernel_sharding(array.shape) if kernel else self.sharding())

        with jax.ensure_compile_time_eval():  # real arrays also when first asked for inside a jitted function
            return jax.tree.map_with_path(place, self.params)

    @functools.cached_property
    def _programs(self) -> dict[bool, Callable]:
        function = functools.partial(generate, self.spec, jnp.dtype(self.dtype), gathered=self.gathered)
        report = lambda index: self._progress(int(index))  # noqa: E731
        return {
            False: jax.jit(function),
            True: jax.jit(lambda *arguments: function(*arguments, report)),
        }

    def decode(
        self,
        embeddings: np.ndarray,
        key: jax.Array | int = 0,
        guidance_scale: float = 10.0,
        num_inference_steps: int = 20,
        noise_level: int = 0,
        negative_embeddings: np.ndarray | None = None,
        latents: np.ndarray | None = None,
        noise: np.ndarray | None = None,
        schedule: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        prompt_embeddings: np.ndarray | None = None,
    ) -> np.ndarray:
        """Image embeddings float32 [B, D] -> pictures uint8 [B, image_size, image_size, 3].

        A row's picture depends on its own inputs, the key and its place in the batch only, up to rounding,
        which may differ between batches of different sizes.

        Args:
          embeddings: as CLIP's vision tower gives them, not normalised.
          key: a JAX key or a seed, of all noise that is not given.
          guidance_scale: 1 or less turns guidance (and half of the work) off.
          num_inference_steps: of the schedule.
          noise_level: 0..999, of the image embeddings; that of negative ones is 0, as in AnyGPT's pipeline.
          negative_embeddings: [B, D], what the pictures shall not show; they get noise of their own.
          latents: float32 [B, H, W, C] to start from, instead of noise.
          noise: float32 [B, D], what the embeddings are noised with.
          schedule: "plms" (as published), "ddim" or "dpm++".
          progress: called on the host as progress(evaluations done, evaluations in all). What it raises
            comes out of here once the call of the program is over, up to ROWS pictures per device later.
            Calls from several threads that want progress take turns, ROWS pictures per device at a time.
          prompt_embeddings: float32 [1 or B, T, E] from the text encoder, instead of the empty prompt.

        Raises:
          UserError: where a shape, a number or a name is impossible.
        """
        spec = self.spec
        table = schedules.make_table(schedule or spec.schedule, spec.noise, num_inference_steps)
        rows = _checked_rows(embeddings, spec.embedding_dim)
        if isinstance(noise_level, bool) or not isinstance(noise_level, int | np.integer):
            raise UserError(f"noise_level is a whole number, not {noise_level!r}.")
        if not 0 <= noise_level < spec.embedding_noise.times:
            raise UserError(f"noise_level lies in 0..{spec.embedding_noise.times - 1}; it is {noise_level}.")
        guidance = _checked_guidance(guidance_scale)
        drawn = self._draw(_checked_key(key), rows)
        wide, text_shape = (rows, spec.embedding_dim), (rows, spec.text.positions, spec.unet.text_dim)
        if prompt_embeddings is not None and len(prompt_embeddings) == 1:
            prompt_embeddings = np.repeat(prompt_embeddings, rows, axis=0)
        inputs = Inputs(
            _checked("embeddings", embeddings, wide),
            drawn[0] if noise is None else _checked("noise", noise, wide),
            _checked("negative_embeddings", negative_embeddings, wide),
            None if negative_embeddings is None else drawn[1],
            drawn[2] if latents is None else _checked("latents", latents, (rows, *spec.latent_shape)),
            _checked("prompt_embeddings", prompt_embeddings, text_shape),
        )
        return self._in_parts(inputs, table, guidance, np.int32(noise_level), progress)

    def _in_parts(self, inputs: Inputs, table, guidance, level, progress) -> np.ndarray:
        devices = self.batch_devices
        rows, size = len(inputs.embeddings), ROWS * devices
        multiple = devices if rows <= size else size  # so that all parts are of one shape, compiled once
        starts = range(0, rows, size)
        evaluations, pictures, raised = len(table.time), [], []
        for done, at in enumerate(starts):
            part = jax.tree.map(lambda leaf, at=at: self._place(leaf[at : at + size], multiple), inputs)
            arguments = self.weights, part, table, guidance, level
            if progress is None:
                pictures.append(np.asarray(self._programs[False](*arguments)))
                continue
            before, total = done * evaluations, len(starts) * evaluations
            told = lambda index, before=before, total=total: progress(before + index + 1, total)  # noqa: E731
            with self._progress_lock:
                self._progress = functools.partial(_guarded, told, raised)
                pictures.append(np.asarray(self._programs[True](*arguments)))
                jax.effects_barrier()  # `progress` has been called for all of this part
            if raised:
                raise raised[0]
        return np.concatenate(pictures)[:rows]

    def _draw(self, key: jax.Array, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Noise of embeddings and of negative ones [B, D], and latents [B, H, W, C], row by row."""
        shapes = (self.spec.embedding_dim,), (self.spec.embedding_dim,), self.spec.latent_shape

        def draw(row: jax.Array) -> list[jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, row), len(shapes))
            return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

        return tuple(np.asarray(part) for part in jax.vmap(draw)(jnp.arange(rows)))

    def _place(self, array: np.ndarray, multiple: int) -> jax.Array:
        """A batch on the devices, its last row repeated up to a multiple of rows."""
        missing = -len(array) % multiple
        array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array
        return self.place(array)


def _interleaved(first: jax.Array, second: jax.Array) -> jax.Array:
    """Rows of two batches in turn, so that the two of a picture lie on one device: [2B, ...]."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _guarded(told: Callable[[int], None], raised: list[BaseException], index: int) -> None:
    """Calls `told` until it raises once, which is kept: inside a program it would become the runtime's error,
    and could leave other devices waiting for this one.
    """
    if raised:
        return
    try:
        told(index)
    except BaseException as error:
        raised.append(error)


def _checked_rows(embeddings: np.ndarray, width: int) -> int:
    shape = np.shape(embeddings)
    if len(shape) != 2 or shape[0] == 0 or shape[1] != width:
        raise UserError(f"The unCLIP decoder takes embeddings of shape [batch, {width}], not {list(shape)}.")
    return shape[0]


def _checked_guidance(scale: float) -> np.float32 | None:
    """The scale, or None where it turns guidance off; UserError unless it is a number that float32 holds."""
    if isinstance(scale, np.ndarray | jax.Array) and scale.ndim == 0:
        scale = scale.item()
    real = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not (real and abs(scale) <= LARGEST_SCALE):
        raise UserError(f"guidance_scale is a finite number, not {_brief(scale)}.")
    return np.float32(scale) if scale > 1 else None


def _checked_key(key: jax.Array | int) -> jax.Array:
    """A JAX key of a seed, of a key, or of what `jax.random.PRNGKey` gives; UserError for anything else."""
    try:
        if isinstance(key, int | np.integer) and not isinstance(key, bool):
            return jax.random.key(key)
        if isinstance(key, np.ndarray | jax.Array):
            typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            key = key if typed else jax.random.wrap_key_data(key)
            if key.ndim == 0:
                return key
    except (TypeError, ValueError, OverflowError):  # too large a seed, or an array that is no key
        pass
    raise UserError(f"`key` is a seed (a whole number of 64 bits) or one JAX key, not {_brief(key)}.")


def _brief(value: object) -> str:
    return f"an array {list(value.shape)}" if isinstance(value, np.ndarray | jax.Array) else repr(value)


def _checked(name: str, array: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array as float32; UserError unless it has the shape and holds finite numbers."""
    if array is None:
        return None
    array = np.asarray(array, np.float32)
    if array.shape != shape:
        raise UserError(f"`{name}` must have the shape {list(shape)}, not {list(array.shape)}.")
    if not np.isfinite(array).all():
        row = np.argwhere(~np.isfinite(array))[0][0]
        raise UserError(f"Row {row} of `{name}` holds a number that is not finite.")
    return array
