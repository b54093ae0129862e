"""What kind of value a field of a configuration must have."""

import math
from collections.abc import Sequence
from typing import Any

from anygpt_tokenizers.cli import UserError

KINDS = {
    int: "a whole number above 0",
    bool: "true or false",
    float: "a number",
    str: "a text",
    Sequence[int]: "a list of whole numbers above 0",
    Sequence[bool]: "a list of true and false",
}


def check_kind(name: str, value: object, kind: Any, zero: bool = False) -> None:
    """UserError unless the value of the field `name` is of a kind of KINDS; `zero`: 0 will do, too."""
    if kind is int:
        right = is_size(value) or (zero and value == 0 and type(value) is int)
    elif kind is float:
        right = is_number(value)
    elif kind == Sequence[int]:
        right = isinstance(value, list | tuple) and value and all(map(is_size, value))
    elif kind == Sequence[bool]:
        right = isinstance(value, list | tuple) and value and all(isinstance(one, bool) for one in value)
    else:
        right = isinstance(value, kind)
    if not right:
        raise UserError(f"{name} is {value!r}; it must be {KINDS[kind]}{' or 0' * zero}.")


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return type(value) is int or (isinstance(value, float) and math.isfinite(value))


def is_size(value: object) -> bool:
    """Whether it is a whole number above 0."""
    return type(value) is int and value > 0
