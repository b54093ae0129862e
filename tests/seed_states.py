"""Random SEED-2 files under the published names, at small sizes, and pictures to feed them."""

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


def random_files(
    spec: SeedSpec = SMALL, seed: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(quantizer, vision tower) by key. Weights are large enough for every part to matter."""
    rng = np.random.default_rng(seed)
    quantizer, vit, dim = {}, {}, spec.qformer_dim

    def array(*shape: int, scale: float) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    def linear(state: dict, key: str, rows: int, columns: int, bias: bool = True, gain: float = 1.5) -> None:
        state[f"{key}.weight"] = array(rows, columns, scale=gain * columns**-0.5)
        if bias:
            state[f"{key}.bias"] = array(rows, scale=0.2)

    def norm(state: dict, key: str, width: int) -> None:
        state[f"{key}.weight"] = 1 + array(width, scale=0.3)
        state[f"{key}.bias"] = array(width, scale=0.2)

    def block(state: dict, key: str, width: int, hidden: int, key_bias: bool) -> None:
        norm(state, f"{key}.norm1", width)
        norm(state, f"{key}.norm2", width)
        linear(state, f"{key}.attn.qkv", 3 * width, width, bias=key_bias)
        if not key_bias:
            state[f"{key}.attn.q_bias"] = array(width, scale=0.5)
            state[f"{key}.attn.v_bias"] = array(width, scale=0.5)
        linear(state, f"{key}.attn.proj", width, width)
        linear(state, f"{key}.mlp.fc1", hidden, width)
        linear(state, f"{key}.mlp.fc2", width, hidden)

    width, patch = spec.vision_dim, spec.patch_size
    vit["cls_token"] = array(1, 1, width, scale=1.0)
    vit["pos_embed"] = array(1, 1 + (spec.image_size // patch) ** 2, width, scale=0.5)
    vit["patch_embed.proj.weight"] = array(width, 3, patch, patch, scale=(3 * patch**2) ** -0.5)
    vit["patch_embed.proj.bias"] = array(width, scale=0.2)
    for index in range(spec.vision_layers):
        block(vit, f"blocks.{index}", width, spec.vision_hidden, key_bias=False)

    norm(quantizer, "ln_vision", width)
    quantizer["query_tokens"] = array(1, spec.num_queries, dim, scale=1.0)
    bert = "Qformer.bert."
    quantizer[f"{bert}embeddings.position_ids"] = np.arange(512)[None]
    norm(quantizer, f"{bert}embeddings.LayerNorm", dim)
    for index in range(spec.qformer_layers):
        layer = f"{bert}encoder.layer.{index}."
        kinds = {"attention": dim, "crossattention": width} if index % 2 == 0 else {"attention": dim}
        for kind, source in kinds.items():
            for name, columns in (("query", dim), ("key", source), ("value", source)):
                linear(quantizer, f"{layer}{kind}.self.{name}", dim, columns)
            # Little of it, or all queries would end alike.
            linear(quantizer, f"{layer}{kind}.output.dense", dim, dim, gain=0.6)
            norm(quantizer, f"{layer}{kind}.output.LayerNorm", dim)
        linear(quantizer, f"{layer}intermediate_query.dense", spec.qformer_hidden, dim)
        linear(quantizer, f"{layer}output_query.dense", dim, spec.qformer_hidden)
        norm(quantizer, f"{layer}output_query.LayerNorm", dim)

    quantizer["quantize.embedding.weight"] = array(spec.codebook_size, spec.code_dim, scale=0.7)
    linear(quantizer, "encode_task_layer.0", dim, dim)
    linear(quantizer, "encode_task_layer.2", spec.code_dim, dim)
    linear(quantizer, "decode_task_layer.0", spec.code_dim, spec.code_dim)
    linear(quantizer, "decode_task_layer.2", dim, spec.code_dim)
    for suffix in ("", "_image"):
        quantizer[f"pos_embed{suffix}"] = array(1, spec.num_queries, dim, scale=0.5)
        for index in range(spec.head_layers):
            block(quantizer, f"blocks{suffix}.{index}", dim, spec.head_hidden, key_bias=True)
    for index, (rows, columns) in enumerate(zip(spec.down_dims, (dim, *spec.down_dims[:-1]), strict=True)):
        linear(quantizer, f"image_down.{2 * index}", rows, columns, bias=False, gain=0.8)
    columns = spec.num_queries * spec.down_dims[-1]
    linear(quantizer, "distill_image_proj", spec.embed_dim, columns, gain=0.8)
    return quantizer, vit


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
