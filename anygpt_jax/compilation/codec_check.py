"""Compiles a published codec's program for one chip, at published sizes; no weights are needed for that."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers import published_codec, published_programs, unclip
from anygpt_tokenizers.published_seanet import PublishedSeanet, SeanetSpec
from anygpt_tokenizers.seed_net import SeedNet, SeedSpec
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax.compilation.report import NO_ESTIMATE, measure
from anygpt_jax.compilation.slices import chip_of, devices_of

# name → (sample rate, sizes): speechtokenizer_hubert_avg (arXiv 2308.16692) and encodec_32khz (2210.13438).
_CODECS = {
    "SpeechTokenizer": (
        16_000,
        SeanetSpec(
            n_filters=64,
            strides=(8, 5, 4, 2),
            dimension=1024,
            quantizers=8,
            codebook_size=1024,
            bidirectional=True,
            activation="ELU",
            semantic_dimension=768,
        ),
    ),
    "EnCodec": (
        32_000,
        SeanetSpec(
            n_filters=64,
            strides=(8, 5, 4, 4),
            dimension=128,
            quantizers=4,
            codebook_size=2048,
            conv_shortcut=False,
        ),
    ),
}


def check_sound(
    codec: str, method: str, topology: str, rows: int, seconds: int
) -> tuple[dict[str, Any], str]:
    """Compiles what a codec of sound runs for `rows` clips of `seconds`, on a slice's first chip.

    `codec` is "SpeechTokenizer" or "EnCodec" (32 kHz), `method` is "encode" or "decode".
    """
    rate, spec = _CODECS[codec]
    block, module = published_codec.BLOCK, PublishedSeanet(spec)
    frames = published_codec.bucket(-(-seconds * rate // spec.hop_length))

    def encode(weights: Any, wave: jax.Array, lengths: jax.Array) -> jax.Array:
        latents = published_programs.latents_of_clips(module, weights, wave, lengths, block)
        return published_programs.quantize(module, weights, latents, 0, spec.quantizers)

    def decode(weights: Any, codes: jax.Array, lengths: jax.Array) -> jax.Array:
        return published_programs.decode_clips(module, weights, codes, lengths, 0, block)

    def arguments() -> tuple:
        example = jax.ShapeDtypeStruct((1, block * spec.hop_length), jnp.float32)
        weights = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
        wave = jax.ShapeDtypeStruct((rows, frames * spec.hop_length), jnp.float32)
        codes = jax.ShapeDtypeStruct((rows, frames, spec.quantizers), jnp.int32)
        given = {"encode": wave, "decode": codes}[method]
        return weights, given, jax.ShapeDtypeStruct((rows,), jnp.int32)

    what, summary = f"{codec.lower()}-{method}", f"{codec} {method}s {rows} clips of {seconds} s"
    program = {"encode": encode, "decode": decode}[method]
    report, text = _check(what, topology, rows, summary, program, arguments)
    sound = rows * seconds
    report |= {"seconds_of_sound": sound}
    if took := report.get("seconds"):
        report |= {"prediction": f"{took:.3f} s, {sound / took:,.0f} times real time"}
    return report, text


def check_seed_encode(topology: str, rows: int) -> tuple[dict[str, Any], str]:
    """Compiles what `SeedCodec.encode` runs for `rows` pictures with bfloat16 products (arXiv 2310.01218)."""
    net = SeedNet(SeedSpec(), jnp.dtype(jnp.bfloat16))

    def encode(weights: Any, pixels: jax.Array) -> jax.Array:
        return net.apply({"params": weights}, pixels, method="encode")

    def arguments() -> tuple:
        pixels = jax.ShapeDtypeStruct((rows, net.spec.image_size, net.spec.image_size, 3), jnp.uint8)
        weights = jax.eval_shape(net.init, jax.random.key(0), pixels)["params"]

        def stored(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            large = path[0].key in ("vision", "qformer") and path[-1].key == "kernel"
            return jax.ShapeDtypeStruct(leaf.shape, net.dtype if large else leaf.dtype)

        return jax.tree_util.tree_map_with_path(stored, weights), pixels

    return _check("seed-encode", topology, rows, f"SEED-2 encodes {rows} pictures", encode, arguments)


def check_unclip_decode(topology: str, rows: int, steps: int) -> tuple[dict[str, Any], str]:
    """Compiles what `UnclipDecoder` runs for `rows` pictures: guided `steps`, in bfloat16."""
    spec = unclip.UnclipSpec()
    program = functools.partial(unclip.generate, spec, jnp.bfloat16)
    arguments = functools.partial(unclip.abstract_arguments, spec, rows, steps)
    summary = f"unCLIP draws {rows} pictures in {steps} steps"
    return _check("unclip-decode", topology, rows, summary, program, arguments)


def _check(
    what: str, topology: str, rows: int, summary: str, program: Callable, arguments: Callable[[], tuple]
) -> tuple[dict[str, Any], str]:
    """Report and text of a program compiled for a slice's first chip, for abstract arguments made there."""
    mesh = Mesh(np.asarray(devices_of(topology)[:1]), ("data",))

    def compile_program() -> Any:
        at = NamedSharding(mesh, PartitionSpec())
        return jax.jit(program, in_shardings=at, out_shardings=at).lower(*arguments()).compile()

    advice = f"--rows={max(1, rows // 2)}"
    report, cost, text = measure(what, topology, mesh, summary, advice, compile_program)
    report |= {"rows": rows, "prediction": NO_ESTIMATE}
    if clock := chip_of(topology).clock:
        took = cost.cycles / clock
        report |= {"seconds": took, "prediction": f"{took:.3f} s, {rows / took:,.1f} a second"}
    return report, text
