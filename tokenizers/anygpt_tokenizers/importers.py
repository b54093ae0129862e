"""Published audio checkpoints -> directories that `load_codec` reads.

Every key of a checkpoint is either used, or known and left out for a stated reason; anything else is an
error. EnCodec's keys come in two spellings (transformers, and the original that SpeechTokenizer shares), and
so does weight normalisation (`weight_g` / `weight_v`, and torch's parametrizations); all are read.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from flax import traverse_util

from anygpt_tokenizers.checkpoint_files import (
    State,
    as_float32,
    check_free,
    finite,
    read_state,
    write_new_directory,
)
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import NO_NET, config_mistakes
from anygpt_tokenizers.encodec import Encodec
from anygpt_tokenizers.encodec_chunks import check_scaling
from anygpt_tokenizers.field_kinds import check_kind, is_number
from anygpt_tokenizers.published_codec import PublishedCodec
from anygpt_tokenizers.published_seanet import MAY_BE_ZERO, SeanetSpec, is_transposed, shapes_of
from anygpt_tokenizers.speechtokenizer import SpeechTokenizer

# What transformers' EncodecConfig says where a config.json is silent.
ENCODEC_DEFAULTS = {
    "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
    "sampling_rate": 24000,
    "audio_channels": 1,
    "normalize": False,
    "chunk_length_s": None,
    "overlap": None,
    "hidden_size": 128,
    "num_filters": 32,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 5, 4, 2],
    "norm_type": "weight_norm",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "reflect",
    "compress": 2,
    "num_lstm_layers": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": 1024,
    "codebook_dim": None,
    "use_conv_shortcut": True,
}
SPEECHTOKENIZER_FIELDS = {
    "n_filters": "n_filters",
    "strides": "strides",
    "dimension": "dimension",
    "n_q": "quantizers",
    "codebook_size": "codebook_size",
    "residual_kernel_size": "residual_kernel",
    "n_residual_layers": "residual_layers",
    "dilation_base": "dilation_base",
    "lstm_layers": "lstm_layers",
    "bidirectional": "bidirectional",
    "activation": "activation",
}
ENCODEC_FIELDS = {
    "num_filters": "n_filters",
    "upsampling_ratios": "strides",
    "hidden_size": "dimension",
    "codebook_size": "codebook_size",
    "kernel_size": "kernel",
    "last_kernel_size": "last_kernel",
    "residual_kernel_size": "residual_kernel",
    "num_residual_layers": "residual_layers",
    "dilation_growth_rate": "dilation_base",
    "compress": "compress",
    "num_lstm_layers": "lstm_layers",
    "use_conv_shortcut": "conv_shortcut",
    "use_causal_conv": "causal",
    "pad_mode": "pad_mode",
    "trim_right_ratio": "trim_right_ratio",
    "audio_channels": "channels",
}
MOST_LEVELS = 1024  # of codebooks; more are a mistake in a config
# Keys that decide nothing once training is over: the moving averages that the codebooks were made from.
TRAINING_ONLY = re.compile(r"quantizer\.layers\.\d+\.codebook\.(inited|cluster_size|embed_avg)")


def import_speechtokenizer(
    ckpt: str | os.PathLike,
    config: str | os.PathLike,
    out: str | os.PathLike,
    num_codebooks: int | None = None,
) -> SpeechTokenizer:
    """Writes a SpeechTokenizer checkpoint as a codec for speech to the new directory `out`, and returns it.

    Args:
      ckpt: the state dict, or a trainer's checkpoint that has it under "generator"; torch's or safetensors.
      config: the model's config.json. Its `codebook_dim` is ignored, as the original code does.
      out: must not exist yet, or be empty.
      num_codebooks: how many of the levels the codec uses; all by default.
    """
    fields = _read_json(config)
    missing = [
        name for name in (*SPEECHTOKENIZER_FIELDS, "semantic_dimension", "sample_rate") if name not in fields
    ]
    if missing:
        raise UserError(f"{config}: a SpeechTokenizer's config has a field {missing[0]!r}; this one doesn't.")
    if fields["activation"] not in ("ELU", "Snake"):
        raise UserError(f"{config}: activation {fields['activation']!r} is unknown; there are ELU and Snake.")
    _check_kinds(fields, SPEECHTOKENIZER_FIELDS, ("semantic_dimension", "sample_rate"), config)
    values = {ours: fields[theirs] for theirs, ours in SPEECHTOKENIZER_FIELDS.items()}
    semantic = fields["semantic_dimension"] if fields["semantic_dimension"] != fields["dimension"] else None
    spec = SeanetSpec(**values, semantic_dimension=semantic)
    return _write(
        SpeechTokenizer, "speech", spec, fields["sample_rate"], num_codebooks, Path(ckpt), Path(out)
    )


def import_encodec(
    src: str | os.PathLike,
    out: str | os.PathLike,
    modality: str | None = None,
    num_codebooks: int | None = None,
) -> Encodec:
    """Writes an EnCodec of transformers' format as a codec to the new directory `out`, and returns it.

    Args:
      src: directory with config.json and model.safetensors or pytorch_model.bin.
      out: must not exist yet, or be empty.
      modality: by default "music" for the non-causal model (32 kHz), "audio" for the causal one (24 kHz).
      num_codebooks: how many of the levels the codec uses; 4 by default, as AnyGPT.
    """
    src = Path(src)
    given = _read_json(src / "config.json")
    fields = {**ENCODEC_DEFAULTS, **{k: v for k, v in given.items() if k in ENCODEC_DEFAULTS}}
    dimension = fields["codebook_dim"] or fields["hidden_size"]
    time_group_norm = fields["norm_type"] == "time_group_norm"
    for name, served, value in [
        ("audio_channels", (1, 2), fields["audio_channels"]),
        ("norm_type", ("weight_norm", "time_group_norm"), fields["norm_type"]),
        ("use_causal_conv", (False,) if time_group_norm else (False, True), fields["use_causal_conv"]),
        ("pad_mode", ("reflect", "constant"), fields["pad_mode"]),
        ("codebook_dim", (fields["hidden_size"],), dimension),
    ]:
        if value not in served:
            allowed = " or ".join(map(repr, served)) + " with time_group_norm" * (name == "use_causal_conv")
            raise UserError(f"{src / 'config.json'}: {name} is {value!r}; only {allowed} is supported.")
    _check_kinds(fields, ENCODEC_FIELDS, ("sampling_rate",), src / "config.json")
    bandwidths = fields["target_bandwidths"]
    if not isinstance(bandwidths, list) or not bandwidths or not all(map(is_number, bandwidths)):
        raise UserError(f"{src / 'config.json'}: target_bandwidths is {bandwidths!r}; it must list numbers.")
    values = {ours: fields[theirs] for theirs, ours in ENCODEC_FIELDS.items()}
    quantizers = _encodec_levels(fields, src / "config.json")
    spec = SeanetSpec(**values, quantizers=quantizers, time_group_norm=time_group_norm)
    scaling = {name: fields[name] for name in ("normalize", "chunk_length_s", "overlap")}
    with config_mistakes(src):
        check_scaling(scaling, fields["sampling_rate"])
    modality = modality or ("audio" if spec.causal else "music")
    files = [src / name for name in ("model.safetensors", "pytorch_model.bin") if (src / name).is_file()]
    if not files:
        raise UserError(f"{src} has neither model.safetensors nor pytorch_model.bin.")
    levels = num_codebooks or min(4, spec.quantizers)
    return _write(Encodec, modality, spec, fields["sampling_rate"], levels, files[0], Path(out), scaling)


def convert_state(state: State, spec: SeanetSpec, place: str) -> dict:
    """A checkpoint's arrays by key -> the parameters of `PublishedSeanet`, float32.

    UserError (beginning with `place`) names a key that is missing, unknown, of the wrong shape or with values
    that aren't finite, and two keys that are spellings of one.
    """
    original = _spellings(state, place)
    for key, value in state.items():
        if not TRAINING_ONLY.fullmatch(canonical_key(key)):
            finite(as_float32(value), place, key)
    arrays = fold_weight_norm({canonical_key(key): value for key, value in state.items()}, place, original)
    try:
        shapes = shapes_of(spec)
    except NO_NET as error:
        raise UserError(f"{place}: the values in its config make no net ({error}).") from error
    params, used = {}, set()
    for name, shape in shapes.items():
        path = tuple(name.split("/"))
        keys, convert, back = _source(path, spec)
        for key in keys:
            if key not in arrays:
                raise UserError(
                    f"{place}: the key {key!r} (in transformers' spelling) is missing; its config has it."
                )
            wanted = back(shape)
            if arrays[key].shape != wanted:
                raise UserError(
                    f"{place}: {_shown(key, original)!r} has the shape {arrays[key].shape}; with this config "
                    f"it must be {wanted}."
                )
        used.update(keys)
        params[path] = convert(*(arrays[key] for key in keys)).astype(np.float32)
    _check_rest(arrays, used, original, place)
    return traverse_util.unflatten_dict(params)


def canonical_key(key: str) -> str:
    """The spelling of transformers, without what wraps a convolution: `encoder.layers.0.conv.weight_g`."""
    key = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", key)
    key = re.sub(r"\.(conv\.conv|convtr\.convtr)\.", ".conv.", key)
    key = re.sub(r"\.(conv|convtr)\.norm\.", ".norm.", key)
    key = key.replace("quantizer.vq.layers.", "quantizer.layers.").replace("._codebook.", ".codebook.")
    key = key.replace(".parametrizations.weight.original0", ".weight_g")
    return key.replace(".parametrizations.weight.original1", ".weight_v")


def _spellings(state: State, place: str) -> dict[str, str]:
    """Canonical key -> the checkpoint's; UserError if two keys mean one weight."""
    original: dict[str, str] = {}
    for key in state:
        name = canonical_key(key)
        # A plain weight and the two parts of a normalised one exclude each other.
        rivals = (name, re.sub(r"\.weight_[gv]$", ".weight", name), f"{name}_g", f"{name}_v")
        for rival in rivals:
            if rival in original:
                raise UserError(f"{place}: {original[rival]!r} and {key!r} are spellings of one weight.")
        original[name] = key
    return original


def fold_weight_norm(arrays: State, place: str, original: dict[str, str]) -> State:
    """Replaces weight_g and weight_v by weight = g · v / |v|, the norm over all axes but the first.

    UserError (beginning with `place`) names what is alone, of the wrong shape, or all zeros; `original` has
    the checkpoint's own name of each array.
    """
    folded = {key: value for key, value in arrays.items() if not key.endswith((".weight_g", ".weight_v"))}
    for key in arrays:
        if key.endswith((".weight_g", ".weight_v")):
            stem = key[: -len("_g")]
            if stem in folded:
                continue
            if stem + "_g" not in arrays or stem + "_v" not in arrays:
                raise UserError(f"{place}: of {stem}_g and {stem}_v, only {key} is there.")
            g, v = arrays[stem + "_g"].astype(np.float64), arrays[stem + "_v"].astype(np.float64)
            norm = np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))
            if g.shape != norm.shape:
                raise UserError(f"{place}: {stem}_g has the shape {g.shape}; {stem}_v asks for {norm.shape}.")
            if not norm.all():
                raise UserError(
                    f"{place}: {original[stem + '_v']!r} has only zeros in row {np.argmin(norm)}; weight "
                    "norm divides them by their norm, 0, so that the weights are no finite numbers."
                )
            folded[stem] = g * v / norm
    return folded


def _source(path: tuple[str, ...], spec: SeanetSpec) -> tuple[list[str], Callable, Callable]:
    """(canonical keys, conversion of their arrays, our shape -> their shape) of the parameter at `path`."""
    after_trunk = 1 + len(spec.strides) * (spec.residual_layers + 2)
    modules = {
        "encoder_lstm": f"encoder.layers.{after_trunk}.lstm",
        "encoder_act": f"encoder.layers.{after_trunk + 1}",
        "encoder_out": f"encoder.layers.{after_trunk + 2}",
        "decoder_in": "decoder.layers.0",
        "decoder_lstm": "decoder.layers.1.lstm",
        "conv_in": "block.1",
        "conv_out": "block.3",
        "act_in": "block.0",
        "act_out": "block.2",
    }
    *parents, leaf = path
    if leaf == "embed":
        keys = [f"quantizer.layers.{i}.codebook.embed" for i in range(spec.quantizers)]
        return keys, lambda *books: np.stack(books), lambda shape: shape[1:]
    if parents[0] == "transform":
        return [f"transform.{'weight' if leaf == 'kernel' else 'bias'}"], np.transpose, lambda s: s[::-1]
    if parents[0].endswith("_lstm"):
        return _lstm_source(modules[parents[0]], parents[1], leaf)
    names = []
    for name in parents:
        if name in ("trunk_down", "trunk_up"):
            names.append("encoder" if name == "trunk_down" else "decoder")
        elif name.startswith("layers_"):
            index = int(name.removeprefix("layers_"))
            names.append(f"layers.{index if parents[0] == 'trunk_down' else index + 2}")
        else:
            names.append(modules.get(name, name))
    stem = ".".join(names)
    if parents[-1] == "norm":
        return [f"{stem}.{'weight' if leaf == 'scale' else 'bias'}"], np.asarray, tuple
    if leaf == "slope":
        return [f"{stem}.alpha"], np.ravel, lambda shape: (1, *shape, 1)
    if leaf == "bias":
        return [f"{stem}.conv.bias"], np.asarray, tuple
    # Our kernels are [kernel, in, out], and [in, kernel, out] of transposed convolutions.
    order = (0, 2, 1) if is_transposed(path, spec) else (2, 1, 0)
    return (
        [f"{stem}.conv.weight"],
        lambda w: w.transpose(order),
        lambda shape: tuple(shape[axis] for axis in order),
    )


def _lstm_source(stem: str, direction: str, leaf: str) -> tuple[list[str], Callable, Callable]:
    side, _, layer = direction.partition("_")
    suffix = f"l{layer}" + ("_reverse" if side == "backward" else "")
    if leaf == "bias":
        keys = [f"{stem}.bias_ih_{suffix}", f"{stem}.bias_hh_{suffix}"]
        return keys, lambda ih, hh: ih.astype(np.float64) + hh, tuple
    part = "ih" if leaf == "input_kernel" else "hh"
    return [f"{stem}.weight_{part}_{suffix}"], np.transpose, lambda shape: shape[::-1]


def _check_rest(arrays: State, used: set[str], original: dict[str, str], place: str) -> None:
    """Refuses keys that nothing used and nobody knows, and codebooks that were never filled."""
    for key, value in arrays.items():
        if key in used:
            continue
        if not TRAINING_ONLY.fullmatch(key):
            hint = "; its codebooks are projected, which no published model does" if "project_" in key else ""
            raise UserError(f"{place}: the key {_shown(key, original)!r} is not known{hint}.")
        if key.endswith(".inited") and not value.all():
            raise UserError(f"{place}: {_shown(key, original)!r} says that this codebook was never filled.")


def _shown(key: str, original: dict[str, str]) -> str:
    """A canonical key as the checkpoint spells it."""
    return original.get(key) or original.get(key + "_v") or key


def _check_kinds(
    fields: dict, names: dict[str, str], numbers: Sequence[str], place: str | os.PathLike
) -> None:
    """UserError if a config's field is not of its kind: `names` (theirs -> SeanetSpec's), and `numbers`."""
    kinds = {field.name: field.type for field in dataclasses.fields(SeanetSpec)}
    for name, kind in [*((name, kinds[ours]) for name, ours in names.items()), *((n, int) for n in numbers)]:
        zero = names.get(name) in MAY_BE_ZERO
        check_kind(f"{os.fspath(place)}: {name}", fields[name], kind, zero)


def _encodec_levels(fields: dict, place: Path) -> int:
    """How many levels the last of the bandwidths pays for; UserError if there is none."""
    frame_rate = -(-fields["sampling_rate"] // math.prod(fields["upsampling_ratios"]))
    bits = frame_rate * (fields["codebook_size"] - 1).bit_length()
    if not bits:
        raise UserError(f"{place}: codebook_size is 1; a codebook has at least 2 codes.")
    levels = 1000 * fields["target_bandwidths"][-1] // bits
    if not 1 <= levels <= MOST_LEVELS:
        raise UserError(
            f"{place}: target_bandwidths ends in {fields['target_bandwidths'][-1]!r} kbit/s; a level takes "
            f"{bits / 1000} of them, and 1 to {MOST_LEVELS} levels are supported."
        )
    return int(levels)


def _write(
    kind: type[PublishedCodec],
    modality: str,
    spec: SeanetSpec,
    sample_rate: int,
    num_codebooks: int | None,
    file: Path,
    out: Path,
    more: dict | None = None,
) -> PublishedCodec:
    """Converts `file` and writes the codec, with `more` in its config, to `out` all at once."""
    check_free(out)
    levels = num_codebooks or spec.quantizers
    if not 1 <= levels <= spec.quantizers:
        raise UserError(f"num_codebooks={levels} is impossible: the checkpoint has {spec.quantizers} levels.")
    params = convert_state(read_state(file), spec, os.fspath(file))
    config = {
        "modality": modality,
        "sample_rate": sample_rate,
        "num_codebooks": levels,
        **dataclasses.asdict(spec),
        **(more or {}),
    }
    codec = kind(config, params)
    write_new_directory(out, codec.save_pretrained)
    return codec


def _read_json(path: str | os.PathLike) -> dict:
    try:
        config = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{os.fspath(path)} can't be read as a JSON config: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"{os.fspath(path)} is no config: it holds no JSON object.")
    return config
