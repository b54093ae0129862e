"""What values the sizes of a Stable unCLIP can have, whoever wrote them down."""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.clip_text import ACTIVATIONS, TextSpec
from anygpt_tokenizers.diffusion_schedules import BETA_KINDS, COSINE, NoiseSpec
from anygpt_tokenizers.field_kinds import check_kind
from anygpt_tokenizers.unclip_unet import UNetSpec
from anygpt_tokenizers.unclip_vae import VaeSpec

Part = TypeVar("Part", UNetSpec, VaeSpec, TextSpec, NoiseSpec)
KINDS = {tuple[int, ...]: Sequence[int], tuple[bool, ...]: Sequence[bool]}
Rule = tuple[str, bool, str]  # a field, whether its value will do, and what it must be


def checked(part: Part, where: str | os.PathLike, names: Mapping[str, str] | None = None) -> Part:
    """The part itself; UserError names, after `where`, a field of another kind or that makes no model.

    `names`: field -> what the file calls it, where that is something else.
    """
    names = names or {}
    for field in dataclasses.fields(part):
        name, kind = names.get(field.name, field.name), KINDS.get(field.type, field.type)
        check_kind(f"{where}: {name}", getattr(part, field.name), kind, zero=field.name == "offset")
    for field, right, wanted in RULES[type(part)](part):
        if not right:
            value = getattr(part, field)
            value = list(value) if isinstance(value, tuple) else value
            raise UserError(f"{where}: {names.get(field, field)} is {value!r}; it must be {wanted}.")
    return part


def _unet(spec: UNetSpec) -> Iterator[Rule]:
    levels, channels = len(spec.channels), list(spec.channels)
    yield "heads", len(spec.heads) == levels, f"{levels} numbers, one a level"
    yield "attention", len(spec.attention) == levels, f"{levels} values, one a level"
    attends = [*spec.attention[:-1], True]  # the middle does, which is as wide as the last level
    split = [width % heads for width, heads, used in zip(channels, spec.heads, attends, strict=True) if used]
    yield "heads", not any(split), f"divisors of the channels {channels} where there is attention"
    yield _groups(spec)
    yield "epsilon", spec.epsilon > 0, "above 0"
    yield "sample_size", not spec.sample_size % 2 ** (levels - 1), f"a multiple of {2 ** (levels - 1)}"
    yield "class_dim", not spec.class_dim % 2, "even"


def _groups(spec: UNetSpec | VaeSpec) -> Rule:
    divides = not any(width % spec.groups for width in spec.channels)
    return "groups", divides, f"a divisor of all the channels {list(spec.channels)}"


def _vae(spec: VaeSpec) -> Iterator[Rule]:
    yield _groups(spec)
    yield "scaling", spec.scaling > 0, "above 0"


def _text(spec: TextSpec) -> Iterator[Rule]:
    yield "num_heads", not spec.embed_dim % spec.num_heads, f"a divisor of the width {spec.embed_dim}"
    yield "activation", spec.activation in ACTIVATIONS, " or ".join(ACTIVATIONS)
    yield "epsilon", spec.epsilon > 0, "above 0"


def _noise(spec: NoiseSpec) -> Iterator[Rule]:
    yield "kind", spec.kind in BETA_KINDS, " or ".join(BETA_KINDS)
    if spec.kind != COSINE:
        yield "first", 0 < spec.first < 1, "between 0 and 1"
        yield "last", spec.first <= spec.last < 1, f"below 1 and at least {spec.first}, the first β"
    yield "offset", 2 * spec.offset < spec.times, f"less than half of the {spec.times} times"


RULES = {UNetSpec: _unet, VaeSpec: _vae, TextSpec: _text, NoiseSpec: _noise}
