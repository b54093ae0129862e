"""The tiny Stable unCLIP of tests/fixtures/unclip.npz as a diffusers directory, imported."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from anygpt_tokenizers.unclip import UnclipDecoder
from anygpt_tokenizers.unclip_importer import import_unclip

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_normalizer": "diffusion_pytorch_model.safetensors",
}
VOCABULARY = {
    "!": 0,
    **{f"word{i}</w>": i for i in range(1, 58)},
    "<|startoftext|>": 58,
    "<|endoftext|>": 59,
}


def recorded() -> dict[str, np.ndarray]:
    """What tests/fixtures/make_unclip_fixtures.py wrote."""
    with np.load(Path(__file__).parent / "fixtures" / "unclip.npz") as file:
        return dict(file)


def write_directory(folder: Path, change=lambda states, configs: None) -> None:
    """Writes the directory as diffusers would, after `change` did its work on state dicts and configs."""
    arrays = recorded()
    states = {part: {} for part in FILES}
    configs = {}
    for name, value in arrays.items():
        part, _, key = name.partition(":")
        if part == "config":
            configs[key] = json.loads(str(value))
        elif part in states:
            states[part][key] = value.astype(np.float32) if value.dtype == np.float16 else value
    change(states, configs)
    for part, fields in configs.items():
        (folder / part).mkdir(parents=True)
        name = "scheduler_config.json" if "scheduler" in part else "config.json"
        (folder / part / name).write_text(json.dumps(fields))
    for part, state in states.items():
        safetensors.numpy.save_file(state, folder / part / FILES[part])
    (folder / "image_encoder").mkdir()
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(VOCABULARY))
    special = {"pad_token": "!", "eos_token": {"content": "<|endoftext|>"}}
    (folder / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))


def recorded_decoder(folder: Path) -> UnclipDecoder:
    """The decoder, by way of files below `folder`."""
    write_directory(folder / "source")
    import_unclip(folder / "source", folder / "decoder")
    return UnclipDecoder.from_pretrained(folder / "decoder")
