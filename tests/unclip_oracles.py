"""Random Stable unCLIP pipelines of diffusers 0.42.1 (torch), for parity tests, fixtures and benchmarks.

Weights are enlarged where a fresh model's would not matter. `pip install --no-deps diffusers==0.42.1`: what
it asks of a newer huggingface_hub only serves downloads, and is replaced by empty names.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

# What diffusers 0.42.1 imports from huggingface_hub 1.x and never calls here.
HUB_NAMES = {
    "": ("resolve_revision", "get_cached_repo_tree"),
    ".errors": ("RevisionResolutionError", "CachedRepoTreeNotFoundError"),
    ".utils": ("httpx",),
}
UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32, 32, 32),
    "attention_head_dim": (1, 2, 4, 4),
    "layers_per_block": 2,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "projection_class_embeddings_input_dim": 40,
}
VAE = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 2, "norm_num_groups": 4}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_act": "gelu",
}
PUBLISHED_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}
FULL_UNET = {
    "sample_size": 96,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "norm_num_groups": 32,
    "projection_class_embeddings_input_dim": 2048,
}
FULL_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}


def diffusers():
    """The package, or None where it isn't installed."""
    if not importlib.util.find_spec("diffusers"):
        return None
    for suffix, names in HUB_NAMES.items():
        module = importlib.import_module(f"huggingface_hub{suffix}")
        for name in names:
            if not hasattr(module, name):
                setattr(module, name, type(name, (Exception,), {}))
    return importlib.import_module("diffusers")


def random_unet(**changes) -> torch.nn.Module:
    """UNet2DConditionModel; `changes` of `UNET`."""
    torch.manual_seed(1)
    model = diffusers().UNet2DConditionModel(
        class_embed_type="projection", use_linear_projection=True, **{**UNET, **changes}
    )
    return enlivened(model)


def random_vae(**changes) -> torch.nn.Module:
    """AutoencoderKL; `changes` of `VAE`."""
    torch.manual_seed(2)
    fields = {**VAE, **changes}
    levels = len(fields["block_out_channels"])
    kinds = {
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return enlivened(diffusers().AutoencoderKL(**kinds, latent_channels=4, **fields))


def random_text(**changes) -> torch.nn.Module:
    """transformers' CLIPTextModel; `changes` of `TEXT`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(3)
    return enlivened(CLIPTextModel(CLIPTextConfig(**{**TEXT, **changes})))


@torch.no_grad()
def enlivened(model: torch.nn.Module) -> torch.nn.Module:
    """Scales around 1 and biases around 0, so that no norm, bias or zero-made layer is trivial."""
    for name, value in model.named_parameters():
        if value.ndim == 1 and "norm" in name and name.endswith("weight"):
            value.normal_(1.0, 0.2)
        elif value.ndim == 1:
            value.normal_(0.0, 0.1)
        elif "embedding.weight" in name:
            value.normal_(0.0, 0.5)
        else:
            value.normal_(0.0, 1.0 / np.sqrt(value[0].numel()))
    return model.eval()


def random_pipeline(half: bool = False, unet: dict | None = None, vae: dict | None = None, text=None):
    """A whole StableUnCLIPImg2ImgPipeline with changes of the sizes above.

    `half`: with weights that are numbers of float16, so that they can be stored as such.
    """
    library = diffusers()
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(8, 8, 8, 1, 1, image_size=8, patch_size=8)  # there, and never called
    parts = {
        "unet": random_unet(**(unet or {})),
        "vae": random_vae(**(vae or {})),
        "text_encoder": random_text(**(text or {})),
    }
    torch.manual_seed(4)
    width = parts["unet"].config.projection_class_embeddings_input_dim // 2
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=width)
    with torch.no_grad():
        normalizer.mean.normal_(0.0, 0.3)
        normalizer.std.uniform_(0.5, 1.5)
        if half:
            for part in (*parts.values(), normalizer):
                for value in part.parameters():
                    value.copy_(value.half())
    pipeline = library.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None,
        image_encoder=CLIPVisionModelWithProjection(vision),
        image_normalizer=normalizer,
        image_noising_scheduler=library.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=None,
        scheduler=schedulers()["plms"],
        **parts,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save(pipeline, folder: Path, safe: bool = True) -> None:
    """Writes the directory as diffusers does, part by part, and a small tokenizer."""
    for name in ("unet", "vae", "text_encoder", "image_normalizer"):
        getattr(pipeline, name).save_pretrained(folder / name, safe_serialization=safe)
    for name in ("scheduler", "image_noising_scheduler"):
        getattr(pipeline, name).save_pretrained(folder / name)
    (folder / "image_encoder").mkdir()
    write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """The files of a tokenizer with 60 entries, laid out as the published one's."""
    folder.mkdir(parents=True)
    words = ["!", *(f"word{i}</w>" for i in range(57)), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    end = {"content": "<|endoftext|>", "normalized": True}
    fields = {"bos_token": "<|startoftext|>", "eos_token": end, "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(fields))


def empty_prompt(pipeline) -> torch.Tensor:
    """[1, T, E], of the tokens that the files of `write_tokenizer` ask for."""
    length = pipeline.text_encoder.config.max_position_embeddings
    tokens = torch.tensor([[58, 59, *[0] * (length - 2)]])
    with torch.no_grad():
        return pipeline.text_encoder(tokens)[0]


@torch.no_grad()
def run(
    pipeline, embeds, latents, noise, scheduler=None, steps=20, guidance=10.0, level=0, away=None
) -> SimpleNamespace:
    """Latents and colours [B, C, H, W] that the pipeline ends with, the noise of the embeddings given.

    `away`: negative embeddings and their noise [B, D], which diffusers' pipeline has no argument for; their
    label takes the place of the empty one as in AnyGPT's copy of it, noised at level 0.
    """
    noised, encode = pipeline.noise_image_embeddings, pipeline._encode_image
    pipeline.noise_image_embeddings = lambda **options: noised(**{**options, "noise": noise})

    def encode_with_negatives(**options) -> torch.Tensor:
        labels = encode(**options).clone()
        if away is not None:
            labels[: len(embeds)] = noised(image_embeds=away[0], noise_level=0, noise=away[1])
        return labels

    pipeline._encode_image = encode_with_negatives
    pipeline.scheduler = scheduler or pipeline.scheduler
    prompt = empty_prompt(pipeline).repeat(len(embeds), 1, 1)
    try:
        end = pipeline(
            image_embeds=embeds,
            latents=latents,
            prompt_embeds=prompt,
            negative_prompt_embeds=prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            noise_level=level,
            output_type="latent",
        ).images
    finally:
        del pipeline.noise_image_embeddings, pipeline._encode_image
    return SimpleNamespace(
        latents=end, colours=pipeline.vae.decode(end / pipeline.vae.config.scaling_factor).sample
    )


def random_inputs(pipeline, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [B, D], latents [B, C, H, W] and noise [B, D]."""
    generator = torch.Generator().manual_seed(seed)
    config = pipeline.unet.config
    wide = (rows, config.projection_class_embeddings_input_dim // 2)
    shapes = wide, (rows, 4, config.sample_size, config.sample_size), wide
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def channels_last(images: torch.Tensor) -> np.ndarray:
    """[B, C, H, W] -> [B, H, W, C], as the rewrite has them."""
    return images.permute(0, 2, 3, 1).numpy()


def schedulers() -> dict:
    """diffusers' scheduler for each of ours."""
    library = diffusers()
    multistep = {key: value for key, value in PUBLISHED_NOISE.items() if key != "set_alpha_to_one"}
    return {
        "plms": library.PNDMScheduler(skip_prk_steps=True, **PUBLISHED_NOISE),
        "ddim": library.DDIMScheduler(clip_sample=False, **PUBLISHED_NOISE),
        "dpm++": library.DPMSolverMultistepScheduler(**multistep),
    }
