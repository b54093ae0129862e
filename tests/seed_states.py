"""Random SEED-2 files under the published names, at small sizes, and pictures to feed them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from anygpt_tokenizers.seed import SeedCodec
from anygpt_tokenizers.seed_importer import import_seed
from anygpt_tokenizers.seed_net import SeedSpec
from PIL import Image, ImageDraw

HEADS = (2, 4, 2)
# Never fewer queries: the original is causal only with 32 of them.
SMALL = SeedSpec(
    image_size=56,
    patch_size=14,
    vision_dim=48,
    vision_layers=3,
    vision_heads=HEADS[0],
    vision_hidden=80,
    num_queries=32,
    qformer_dim=32,
    qformer_layers=4,
    qformer_heads=HEADS[1],
    qformer_hidden=64,
    codebook_size=2048,
    code_dim=8,
    head_layers=2,
    head_heads=HEADS[2],
    head_hidden=64,
    down_dims=(24, 16, 8),
    embed_dim=256,
)
REVERSE = dataclasses.replace(SMALL, down_dims=(), reverse_layers=4)


class State(dict):
    """A state dict that is filled with random layers; weights are large enough for every part to matter."""

    def __init__(self, rng: np.random.Generator):
        self._rng = rng

    def array(self, key: str, *shape: int, scale: float) -> None:
        self[key] = self._rng.normal(0, scale, shape).astype(np.float32)

    def linear(self, key: str, rows: int, columns: int, bias: bool = True, gain: float = 1.5) -> None:
        self.array(f"{key}.weight", rows, columns, scale=gain * columns**-0.5)
        if bias:
            self.array(f"{key}.bias", rows, scale=0.2)

    def norm(self, key: str, width: int) -> None:
        self.array(f"{key}.weight", width, scale=0.3)
        self[f"{key}.weight"] += 1
        self.array(f"{key}.bias", width, scale=0.2)

    def block(self, key: str, width: int, hidden: int, key_bias: bool) -> None:
        self.norm(f"{key}.norm1", width)
        self.norm(f"{key}.norm2", width)
        self.linear(f"{key}.attn.qkv", 3 * width, width, bias=key_bias)
        if not key_bias:
            self.array(f"{key}.attn.q_bias", width, scale=0.5)
            self.array(f"{key}.attn.v_bias", width, scale=0.5)
        self.linear(f"{key}.attn.proj", width, width)
        self.linear(f"{key}.mlp.fc1", hidden, width)
        self.linear(f"{key}.mlp.fc2", width, hidden)


def random_files(
    spec: SeedSpec = SMALL, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(quantizer, vision tower) by key."""
    rng = np.random.default_rng(seed)
    vit, quantizer = State(rng), State(rng)
    _fill_vision(vit, spec)
    quantizer.norm("ln_vision", spec.vision_dim)
    quantizer.array("query_tokens", 1, spec.num_queries, spec.qformer_dim, scale=1.0)
    _fill_qformer(quantizer, spec, "Qformer.bert.", spec.qformer_layers, spec.vision_dim)
    quantizer.array("quantize.embedding.weight", spec.codebook_size, spec.code_dim, scale=0.7)
    _fill_head(quantizer, spec)
    return dict(quantizer), dict(vit)


def _fill_vision(state: State, spec: SeedSpec) -> None:
    width, patch = spec.vision_dim, spec.patch_size
    state.array("cls_token", 1, 1, width, scale=1.0)
    state.array("pos_embed", 1, 1 + (spec.image_size // patch) ** 2, width, scale=0.5)
    state.array("patch_embed.proj.weight", width, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    state.array("patch_embed.proj.bias", width, scale=0.2)
    for index in range(spec.vision_layers):
        state.block(f"blocks.{index}", width, spec.vision_hidden, key_bias=False)


def _fill_qformer(state: State, spec: SeedSpec, bert: str, num_layers: int, source_dim: int) -> None:
    dim = spec.qformer_dim
    state[f"{bert}embeddings.position_ids"] = np.arange(512)[None]
    state.norm(f"{bert}embeddings.LayerNorm", dim)
    for index in range(num_layers):
        layer = f"{bert}encoder.layer.{index}."
        kinds = {"attention": dim, "crossattention": source_dim}
        for kind in list(kinds)[: 1 + (index % 2 == 0)]:
            for name, columns in (("query", dim), ("key", kinds[kind]), ("value", kinds[kind])):
                state.linear(f"{layer}{kind}.self.{name}", dim, columns)
            # Little of it, or all queries would end alike.
            state.linear(f"{layer}{kind}.output.dense", dim, dim, gain=0.6)
            state.norm(f"{layer}{kind}.output.LayerNorm", dim)
        state.linear(f"{layer}intermediate_query.dense", spec.qformer_hidden, dim)
        state.linear(f"{layer}output_query.dense", dim, spec.qformer_hidden)
        state.norm(f"{layer}output_query.LayerNorm", dim)


def _fill_head(state: State, spec: SeedSpec) -> None:
    dim = spec.qformer_dim
    state.linear("encode_task_layer.0", dim, dim)
    state.linear("encode_task_layer.2", spec.code_dim, dim)
    state.linear("decode_task_layer.0", spec.code_dim, spec.code_dim)
    state.linear("decode_task_layer.2", dim, spec.code_dim)
    for suffix in ("", "_image"):
        state.array(f"pos_embed{suffix}", 1, spec.num_queries, dim, scale=0.5)
        for index in range(spec.head_layers):
            state.block(f"blocks{suffix}.{index}", dim, spec.head_hidden, key_bias=True)
    if spec.reverse_layers:
        state.array("reverse_tokens", 1, 1, dim, scale=1.0)
        _fill_qformer(state, spec, "Reverse_Qformer.bert.", spec.reverse_layers, dim)
        state.linear("distill_image_proj", spec.embed_dim, dim, gain=0.8)
        return
    for index, (rows, columns) in enumerate(zip(spec.down_dims, (dim, *spec.down_dims[:-1]), strict=True)):
        state.linear(f"image_down.{2 * index}", rows, columns, bias=False, gain=0.8)
    columns = spec.num_queries * spec.down_dims[-1]
    state.linear("distill_image_proj", spec.embed_dim, columns, gain=0.8)


def write_files(folder: Path, files: tuple[dict, dict]) -> tuple[Path, Path]:
    """Writes (quantizer, vision tower) as safetensors and returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "seed_quantizer.safetensors", folder / "eva_vit_g.safetensors"
    for path, state in zip(paths, files, strict=True):
        safetensors.numpy.save_file(state, path)
    return paths


def random_codec(folder: Path, files: tuple[dict, dict] | None = None, **options) -> SeedCodec:
    """The codec of random files, by way of files below `folder`."""
    paths = write_files(folder / "files", files or random_files())
    return import_seed(*paths, folder / "codec", num_heads=HEADS, **options)[0]


def stages(codec: SeedCodec, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What the codec makes of pictures before it decides, by name, in one compiled program."""
    names = ("features", "queries", "latents")

    @jax.jit
    def run(weights, pixels):
        return {name: codec.net.apply({"params": weights}, pixels, method=name) for name in names}

    return {name: np.asarray(value) for name, value in run(codec.weights, pixels).items()}


def random_pictures(count: int, size: int = SMALL.image_size, seed: int = 0) -> np.ndarray:
    """uint8 [count, size, size, 3]: coloured shapes, gradients and noise, all different."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        image = Image.new("RGB", (size, size), tuple(rng.integers(0, 256, 3)))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 6))):
            box = np.sort(rng.uniform(0, size, (2, 2)), axis=0).ravel().tolist()
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape(box, fill=tuple(rng.integers(0, 256, 3)))
        ramp = np.linspace(0, rng.uniform(0, 120), size)[:, None, None]
        noise = rng.normal(0, rng.uniform(0, 60), (size, size, 3))
        pictures.append(np.clip(np.asarray(image) + ramp + noise, 0, 255).astype(np.uint8))
    return np.stack(pictures)
