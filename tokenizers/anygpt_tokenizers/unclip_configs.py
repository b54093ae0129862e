"""What the JSON files of a diffusers directory of Stable unCLIP say, as our sizes; else refused by name."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_text import TextSpec
from anygpt_tokenizers.diffusion_schedules import NoiseSpec
from anygpt_tokenizers.field_kinds import check_kind
from anygpt_tokenizers.unclip_checks import checked
from anygpt_tokenizers.unclip_spec import UnclipSpec
from anygpt_tokenizers.unclip_unet import UNetSpec
from anygpt_tokenizers.unclip_vae import VaeSpec

NEEDED_FOLDERS = (
    "unet",
    "vae",
    "text_encoder",
    "tokenizer",
    "image_normalizer",
    "scheduler",
    "image_noising_scheduler",
)
IGNORED_FOLDERS = ("image_encoder", "feature_extractor")  # CLIP's vision tower and its preprocessing
DESCRIPTION = ("_class_name", "_diffusers_version", "_name_or_path")

# Fields with the one value (or few) that is served; those in *_SIZES may be anything. A field in neither must
# be empty: None or False.
UNET_SIZES = (
    "sample_size",
    "in_channels",
    "out_channels",
    "block_out_channels",
    "layers_per_block",
    "attention_head_dim",
    "cross_attention_dim",
    "projection_class_embeddings_input_dim",
    "norm_num_groups",
    "norm_eps",
    "down_block_types",
    "up_block_types",
    "upcast_attention",  # softmax is always in float32
    "dropout",
    "addition_embed_type_num_heads",  # of no effect without addition_embed_type
)
UNET_SERVED = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "class_embed_type": ("projection",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
    "use_linear_projection": (True,),
}
VAE_SIZES = (
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "scaling_factor",
    "sample_size",
    "in_channels",
    "down_block_types",  # of the encoder
    "up_block_types",
    "force_upcast",  # norms and softmax are in float32
    "use_quant_conv",
)
VAE_SERVED = {
    "act_fn": ("silu", "swish"),
    "out_channels": (3,),
    "mid_block_add_attention": (True,),
    "use_post_quant_conv": (True,),
}
NOISE_SIZES = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "set_alpha_to_one",
    "steps_offset",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "sample_max_value",
)
SCHEDULER_SERVED = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "prediction_type": ("v_prediction",),
    "skip_prk_steps": (True,),
    "timestep_spacing": ("leading",),
}
# Of the noising scheduler only the amounts of noise matter.
NOISING_SERVED = {"beta_schedule": ("squaredcos_cap_v2", "scaled_linear", "linear"), "trained_betas": (None,)}
SCHEDULES = {"PNDMScheduler": "plms", "DDIMScheduler": "ddim"}

# Our names of fields -> diffusers' and transformers', for messages.
UNET_NAMES = {
    "latent_channels": "in_channels",
    "channels": "block_out_channels",
    "heads": "attention_head_dim",
    "attention": "down_block_types",
    "resnets": "layers_per_block",
    "text_dim": "cross_attention_dim",
    "class_dim": "projection_class_embeddings_input_dim",
    "groups": "norm_num_groups",
    "epsilon": "norm_eps",
}
VAE_NAMES = {
    "channels": "block_out_channels",
    "resnets": "layers_per_block",
    "groups": "norm_num_groups",
    "scaling": "scaling_factor",
}
TEXT_NAMES = {
    "positions": "max_position_embeddings",
    "embed_dim": "hidden_size",
    "hidden_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
}
NOISE_NAMES = {
    "times": "num_train_timesteps",
    "kind": "beta_schedule",
    "first": "beta_start",
    "last": "beta_end",
    "offset": "steps_offset",
    "end_clean": "set_alpha_to_one",
}


def read_spec(src: Path) -> UnclipSpec:
    """The sizes of a whole diffusers directory; UserError names a folder or a field that doesn't fit."""
    missing = [name for name in NEEDED_FOLDERS if not (src / name).is_dir()]
    if missing:
        raise UserError(f"{src} is no Stable unCLIP of diffusers' format: it has no folder {missing[0]!r}.")
    noise, schedule = _diffusion(src / "scheduler" / "scheduler_config.json")
    spec = UnclipSpec(
        unet=_unet(src / "unet" / "config.json"),
        vae=_vae(src / "vae" / "config.json"),
        text=_text(src / "text_encoder" / "config.json"),
        noise=noise,
        embedding_noise=_embedding_noise(src / "image_noising_scheduler" / "scheduler_config.json"),
        schedule=schedule,
    )
    normalizer = src / "image_normalizer" / "config.json"
    dim = _whole(normalizer, read_json(normalizer), "embedding_dim", 768)
    for what, one, other in [
        ("the normalizer's embedding_dim, twice, and the UNet's class label", 2 * dim, spec.unet.class_dim),
        ("the text encoder's and the UNet's text", spec.text.embed_dim, spec.unet.text_dim),
        ("the UNet's and the autoencoder's latents", spec.unet.latent_channels, spec.vae.latent_channels),
    ]:
        if one != other:
            raise UserError(f"{src}: {what} have different widths, {one} and {other}.")
    return spec


def empty_prompt_tokens(folder: Path, spec: TextSpec) -> np.ndarray:
    """The tokens of "", int32 [positions]: start, end, and padding, as the tokenizer's files name them."""
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / file).is_file():
            given = read_json(folder / file)
            for name in names:
                value = given.get(name) or names[name]
                names[name] = value.get("content") if isinstance(value, dict) else value
                check_kind(f"{folder / file}: the {name}, or its content,", names[name], str)
    vocabulary = _vocabulary(folder)
    ids = {}
    for name, token in names.items():
        if token not in vocabulary:
            raise UserError(f"{folder}: the {name} {token!r} is not in the vocabulary.")
        ids[name] = vocabulary[token]
        check_kind(f"{folder}: the number of {token!r}", ids[name], int, zero=True)
        if ids[name] >= spec.vocab_size:
            raise UserError(
                f"{folder}: {token!r} has the number {ids[name]}; the text encoder has no such row."
            )
    tokens = np.full(spec.positions, ids["pad_token"], np.int32)
    tokens[:2] = ids["bos_token"], ids["eos_token"]
    return tokens


def read_json(path: Path) -> dict:
    """A JSON object; UserError if there is none."""
    try:
        fields = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as a JSON config: {error}.") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path} is not a JSON object.")
    return fields


def _vocabulary(folder: Path) -> dict[str, int]:
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    if (folder / "tokenizer.json").is_file():
        fields = read_json(folder / "tokenizer.json")
        added = {token["content"]: token["id"] for token in fields.get("added_tokens") or []}
        return {**fields.get("model", {}).get("vocab", {}), **added}
    raise UserError(f"{folder} has neither vocab.json nor tokenizer.json.")


def _unet(path: Path) -> UNetSpec:
    fields = _checked(path, UNET_SIZES, UNET_SERVED, needed=("projection_class_embeddings_input_dim",))
    channels = _get(path, fields, "block_out_channels")
    check_kind(f"{path}: block_out_channels", channels, Sequence[int])
    heads = _get(path, fields, "attention_head_dim")  # so named; it is the number of heads
    heads = heads if isinstance(heads, list) else [_whole(path, fields, "attention_head_dim")] * len(channels)
    down, up = _get(path, fields, "down_block_types"), _get(path, fields, "up_block_types")
    attention = [kind == "CrossAttnDownBlock2D" for kind in down] if isinstance(down, list) else []
    for name, kinds, cross, plain, expected in [
        ("down_block_types", down, "CrossAttnDownBlock2D", "DownBlock2D", attention),
        ("up_block_types", up, "CrossAttnUpBlock2D", "UpBlock2D", attention[::-1]),
    ]:
        if kinds != [cross if attends else plain for attends in expected]:
            raise UserError(f"{path}: {name} {kinds} are not supported.")
    if len(heads) != len(channels) or len(attention) != len(channels):
        raise UserError(f"{path}: block_out_channels, attention_head_dim and block types differ in number.")
    if fields.get("in_channels", 4) != fields.get("out_channels", 4):
        raise UserError(f"{path}: out_channels is {fields['out_channels']}; it must be as in_channels.")
    spec = UNetSpec(
        sample_size=fields.get("sample_size"),
        latent_channels=fields.get("in_channels", 4),
        channels=tuple(channels),
        heads=tuple(heads),
        attention=tuple(attention),
        resnets=fields.get("layers_per_block", 2),
        text_dim=fields.get("cross_attention_dim"),
        class_dim=fields.get("projection_class_embeddings_input_dim"),
        groups=fields.get("norm_num_groups", 32),
        epsilon=fields.get("norm_eps", 1e-5),
    )
    return checked(spec, path, UNET_NAMES)


def _vae(path: Path) -> VaeSpec:
    fields = _checked(path, VAE_SIZES, VAE_SERVED)
    channels = _get(path, fields, "block_out_channels")
    spec = VaeSpec(
        latent_channels=fields.get("latent_channels", 4),
        channels=tuple(channels) if isinstance(channels, list) else channels,
        resnets=fields.get("layers_per_block", 1),
        groups=fields.get("norm_num_groups", 32),
        scaling=fields.get("scaling_factor", 0.18215),
    )
    return checked(spec, path, VAE_NAMES)


def _text(path: Path) -> TextSpec:
    fields = read_json(path)
    spec = TextSpec(
        vocab_size=fields.get("vocab_size", 49408),
        positions=fields.get("max_position_embeddings", 77),
        embed_dim=fields.get("hidden_size"),
        hidden_dim=fields.get("intermediate_size"),
        num_layers=fields.get("num_hidden_layers"),
        num_heads=fields.get("num_attention_heads"),
        activation=fields.get("hidden_act", "quick_gelu"),
        epsilon=fields.get("layer_norm_eps", 1e-5),
    )
    return checked(spec, path, TEXT_NAMES)


def _diffusion(path: Path) -> tuple[NoiseSpec, str]:
    fields = _checked(path, NOISE_SIZES, SCHEDULER_SERVED, needed=("prediction_type", "beta_schedule"))
    kind = fields.get("_class_name")
    if kind not in list(SCHEDULES):
        raise UserError(f"{path}: the scheduler {kind!r} is not supported; {' and '.join(SCHEDULES)} are.")
    if kind == "PNDMScheduler" and not fields.get("skip_prk_steps"):
        raise UserError(f"{path}: skip_prk_steps is off; only True is supported.")
    ends_clean = kind == "DDIMScheduler"  # where the file is silent
    spec = _noise(
        path,
        fields,
        offset=fields.get("steps_offset", 0),
        end_clean=fields.get("set_alpha_to_one", ends_clean),
    )
    return spec, SCHEDULES[kind]


def _embedding_noise(path: Path) -> NoiseSpec:
    fields = read_json(path)
    for name, served in NOISING_SERVED.items():
        if fields.get(name, served[0]) not in served:
            raise UserError(f"{path}: {name} is {fields[name]!r}; only {served[0]!r} is supported.")
    return _noise(path, fields, offset=0)


def _noise(path: Path, fields: dict, **others) -> NoiseSpec:
    spec = NoiseSpec(
        times=fields.get("num_train_timesteps", 1000),
        kind=fields.get("beta_schedule", "linear"),
        first=fields.get("beta_start", 0.0001),
        last=fields.get("beta_end", 0.02),
        **others,
    )
    return checked(spec, path, NOISE_NAMES)


def _checked(path: Path, sizes: tuple[str, ...], served: dict, needed: tuple[str, ...] = ()) -> dict:
    """The fields of a config, all of which are known."""
    fields = read_json(path)
    for name in needed:
        _get(path, fields, name)
    for name, value in fields.items():
        if name in sizes or name in DESCRIPTION:
            continue
        if name in served and value not in served[name]:
            raise UserError(f"{path}: {name} is {value!r}; only {served[name][0]!r} is supported.")
        if name not in served and value not in (None, False):
            raise UserError(f"{path}: {name} is {value!r}, which is not supported.")
    return fields


def _get(path: Path, fields: dict, name: str):
    if fields.get(name) is None:
        raise UserError(f"{path} has no field {name!r}.")
    return fields[name]


def _whole(path: Path, fields: dict, name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    check_kind(f"{path}: {name}", value, int)
    return value
