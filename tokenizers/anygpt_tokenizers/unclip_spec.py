"""Sizes and conventions of the unCLIP decoder, and the directory that it is read from."""

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_text import TextSpec
from anygpt_tokenizers.codec import CONFIG_FILE, WEIGHTS_FILE
from anygpt_tokenizers.diffusion_schedules import SCHEDULES, NoiseSpec
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.unclip_checks import checked
from anygpt_tokenizers.unclip_unet import UNetSpec
from anygpt_tokenizers.unclip_vae import VaeSpec

EMBEDDING_NOISE = NoiseSpec(kind="squaredcos_cap_v2", offset=0)
DTYPES = ("float32", "bfloat16")  # that the decoder computes in
OLD_DTYPE = "float32"  # of directories from before their config had a dtype


@dataclasses.dataclass(frozen=True)
class UnclipSpec:
    """Sizes and conventions; the defaults are the published model's.

    Attributes:
      unet, vae, text: of the networks.
      noise: of the diffusion.
      embedding_noise: of the image embedding.
      schedule: the sampler that `decode` takes by default.
    """

    unet: UNetSpec = dataclasses.field(default_factory=UNetSpec)
    vae: VaeSpec = dataclasses.field(default_factory=VaeSpec)
    text: TextSpec = dataclasses.field(default_factory=TextSpec)
    noise: NoiseSpec = dataclasses.field(default_factory=NoiseSpec)
    embedding_noise: NoiseSpec = EMBEDDING_NOISE
    schedule: str = "plms"

    @property
    def embedding_dim(self) -> int:
        """Width of the image embedding: half of the class label."""
        return self.unet.class_dim // 2

    @property
    def image_size(self) -> int:
        """Side of the pictures in pixels."""
        return self.unet.sample_size * self.vae.factor

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one picture's latents."""
        return (self.unet.sample_size, self.unet.sample_size, self.unet.latent_channels)

    @classmethod
    def from_config(cls, config: dict, where: str | os.PathLike = "The config") -> Self:
        """From the fields that `dataclasses.asdict` gives, possibly after a way through JSON.

        UserError names, with `where`, a field that is missing, that nobody knows, or that makes no model.
        """
        kinds = {"unet": UNetSpec, "vae": VaeSpec, "text": TextSpec, "noise": NoiseSpec}
        kinds["embedding_noise"] = NoiseSpec
        _check_fields(where, config, (*kinds, "schedule"))
        parts = {name: _part(kind, f"{where}: {name!r}", config[name]) for name, kind in kinds.items()}
        if config["schedule"] not in list(SCHEDULES):
            known = ", ".join(SCHEDULES)
            raise UserError(f"{where}: 'schedule' is {config['schedule']!r}; it must be one of {known}.")
        return cls(**parts, schedule=config["schedule"])


def open_directory(directory: str | os.PathLike) -> tuple[dict, UnclipSpec, dict[str, np.ndarray]]:
    """config.json, its sizes, and the weights, not yet read, of a directory that `import-unclip` wrote.

    UserError if it is none, or if a field is missing.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{directory} holds no unCLIP decoder ({error}); make one with import-unclip."
        ) from error
    if not isinstance(config, dict) or config.get("type") != "unclip":
        raise UserError(f"{directory} holds no unCLIP decoder; make one with import-unclip.")
    _check_fields(directory / CONFIG_FILE, config, ("empty_prompt_tokens",))
    spec = UnclipSpec.from_config(config, directory / CONFIG_FILE)
    tokens = config["empty_prompt_tokens"]
    if not isinstance(tokens, list) or [type(token) for token in tokens] != [int] * spec.text.positions:
        raise UserError(
            f"{directory / CONFIG_FILE}: 'empty_prompt_tokens' must be {spec.text.positions} whole numbers; "
            "import the decoder again."
        )
    return config, spec, map_arrays(directory / WEIGHTS_FILE)


def _part(kind: type, where: str, values: dict):
    """An instance of a dataclass; lists become tuples."""
    names = [field.name for field in dataclasses.fields(kind)]
    _check_fields(where, values, names)
    unknown = [name for name in values if name not in names]
    if unknown:
        raise UserError(f"{where} has the field {unknown[0]!r}, which is not known here.")
    part = kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    )
    return checked(part, where)


def _check_fields(where: str | os.PathLike, values: dict, names: Iterable[str]) -> None:
    missing = [name for name in names if not isinstance(values, dict) or name not in values]
    if missing:
        raise UserError(f"{where} lacks the field {missing[0]!r}; import the decoder again.")
