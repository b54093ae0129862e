"""Compiles a published codec's program for one chip, at published sizes; no weights are needed for that."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from anygpt_tokenizers import published_codec, published_programs
from anygpt_tokenizers.published_seanet import PublishedSeanet, SeanetSpec
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax.compilation.report import measure
from anygpt_jax.compilation.slices import chip_of, devices_of

# The published speechtokenizer_hubert_avg (arXiv 2308.16692).
SPEECHTOKENIZER = SeanetSpec(
    n_filters=64,
    strides=(8, 5, 4, 2),
    dimension=1024,
    quantizers=8,
    codebook_size=1024,
    bidirectional=True,
    activation="ELU",
    semantic_dimension=768,
)
_SAMPLE_RATE = 16_000


def check_speechtokenizer_encode(topology: str, rows: int, seconds: int) -> tuple[dict[str, Any], str]:
    """Compiles what `SpeechTokenizer.encode` runs for `rows` clips of `seconds`, on a slice's first chip."""
    chip = chip_of(topology)
    mesh = Mesh(np.asarray(devices_of(topology)[:1]), ("data",))
    spec, block = SPEECHTOKENIZER, published_codec.BLOCK
    module = PublishedSeanet(spec)
    frames = published_codec.bucket(-(-seconds * _SAMPLE_RATE // spec.hop_length))

    def encode(weights: Any, wave: jax.Array, lengths: jax.Array) -> jax.Array:
        latents = published_programs.latents_of_clips(module, weights, wave, lengths, block)
        return published_programs.quantize(module, weights, latents, 0, spec.quantizers)

    def compile_program() -> Any:
        at = NamedSharding(mesh, PartitionSpec())
        example = jax.ShapeDtypeStruct((1, block * spec.hop_length), jnp.float32)
        weights = jax.eval_shape(module.init, jax.random.key(0), example)["params"]
        wave = jax.ShapeDtypeStruct((rows, frames * spec.hop_length), jnp.float32)
        lengths = jax.ShapeDtypeStruct((rows,), jnp.int32)
        return jax.jit(encode, in_shardings=at, out_shardings=at).lower(weights, wave, lengths).compile()

    report, cost, text = measure("speechtokenizer-encode", topology, mesh, compile_program)
    took = cost.cycles / chip.clock
    report |= {
        "rows": rows,
        "seconds_of_sound": rows * seconds,
        "seconds": took,
        "summary": f"SpeechTokenizer encodes {rows} clips of {seconds} s",
        "prediction": f"{took:.3f} s, {rows * seconds / took:,.0f} times real time",
    }
    if not report["fits"]:
        report["advice"] = f"--rows={rows // 2}"
    return report, text
