"""What can be said in the small world, what each caption means, and which of it training never sees.

A caption and its meaning are two forms of one thing: `caption(attributes)` writes it, `parse_caption(text)`
reads it. The attributes are flat dictionaries of strings:

    {"kind": "shape", "size", "color", "shape"}
        a small red circle
    {"kind": "pair", "size", "color", "shape", "relation", "size2", "color2", "shape2"}
        a small red circle above a large blue square
    {"kind": "digit", "digit"}
        a handwritten seven
    {"kind": "music", "tempo", "contour", "instrument", "mode"}
        a slow rising piano tune in a major key

Held-out items are chosen by the SHA-256 of their text, so the choice depends on no seed, order or version.
"""

import functools
import hashlib
import itertools
from collections.abc import Iterable

Attributes = dict[str, str]

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
SIZES = ("small", "large")
SHAPES = ("circle", "square", "triangle")
RELATIONS = ("above", "below", "left of", "right of")
CONVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPOS = ("slow", "medium", "fast")
CONTOURS = ("rising", "falling")
INSTRUMENTS = ("piano", "organ", "flute", "guitar")
MODES = ("major", "minor")
REQUESTS = ("draw", "paint", "show me")
SPLITS = ("train", "heldout")
HELDOUT_FRACTION = 0.2


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_fraction(text: str) -> float:
    """A fixed pseudo-random number in [0, 1) that belongs to the text."""
    return int(_hash(text)[:13], 16) / 16**13


def _lowest_hashes(texts: Iterable[str], fraction: float) -> set[str]:
    ordered = sorted(texts, key=_hash)
    return set(ordered[: round(len(ordered) * fraction)])


def caption(attributes: Attributes) -> str:
    """The one caption of the attributes (see the module's docstring)."""
    kind = attributes["kind"]
    if kind == "shape":
        return "a {size} {color} {shape}".format_map(attributes)
    if kind == "pair":
        return "a {size} {color} {shape} {relation} a {size2} {color2} {shape2}".format_map(attributes)
    if kind == "digit":
        return "a handwritten {digit}".format_map(attributes)
    if kind == "music":
        return "a {tempo} {contour} {instrument} tune in a {mode} key".format_map(attributes)
    raise ValueError(f"no caption for the kind {kind!r}")


@functools.cache
def _meanings() -> dict[str, Attributes]:
    everything = [*all_shapes(), *all_pairs(), *all_digits(), *all_music()]
    return {caption(attributes): attributes for attributes in everything}


def parse_caption(text: str) -> Attributes | None:
    """The meaning of a caption of pictures or music; None if the text is no caption of this world."""
    found = _meanings().get(" ".join(text.lower().replace(".", " ").split()))
    return dict(found) if found else None


def canonical(attributes: Attributes) -> Attributes:
    """Of the two true descriptions of a pair ("A above B" is "B below A") the one with above or left of."""
    if attributes.get("relation") not in ("below", "right of"):
        return dict(attributes)
    first, second = ("size", "color", "shape"), ("size2", "color2", "shape2")
    swapped = dict(attributes, relation=CONVERSE[attributes["relation"]])
    swapped.update(
        {key: attributes[other] for key, other in zip(first + second, second + first, strict=True)}
    )
    return swapped


def all_shapes() -> list[Attributes]:
    """The 36 pictures of one shape."""
    return [
        {"kind": "shape", "size": size, "color": color, "shape": shape}
        for size, color, shape in itertools.product(SIZES, COLORS, SHAPES)
    ]


def all_pairs() -> list[Attributes]:
    """The 36 × 30 × 4 captions of two shapes of different colours; each picture has two of them."""
    return [
        {
            **first,
            "kind": "pair",
            "relation": relation,
            **{key + "2": second[key] for key in ("size", "color", "shape")},
        }
        for first, second in itertools.product(all_shapes(), repeat=2)
        for relation in RELATIONS
        if first["color"] != second["color"]
    ]


def all_digits() -> list[Attributes]:
    """The ten handwritten digits."""
    return [{"kind": "digit", "digit": digit} for digit in DIGITS]


def all_music() -> list[Attributes]:
    """The 48 kinds of music."""
    return [
        {"kind": "music", "tempo": tempo, "contour": contour, "instrument": instrument, "mode": mode}
        for tempo, contour, instrument, mode in itertools.product(TEMPOS, CONTOURS, INSTRUMENTS, MODES)
    ]


def _one_per_group(items: list[Attributes], *keys: str) -> set[str]:
    """Of every group with equal `keys` the caption with the lowest hash: every value is still seen."""
    groups: dict[tuple, list[str]] = {}
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), []).append(caption(item))
    return {min(group, key=_hash) for group in groups.values()}


@functools.cache
def heldout_shapes() -> frozenset[str]:
    """Six captions, one of each colour, that training never sees alone (they do occur in pairs)."""
    return frozenset(_one_per_group(all_shapes(), "color"))


@functools.cache
def heldout_music() -> frozenset[str]:
    """Eight of the 48 captions of music, one for each instrument and mode."""
    return frozenset(_one_per_group(all_music(), "instrument", "mode"))


def _pair_name(attributes: Attributes) -> str:
    """The two shapes in alphabetical order, so that a pair and its converse share their fate."""
    one = "{size} {color} {shape}".format_map(attributes)
    two = "{size2} {color2} {shape2}".format_map(attributes)
    return " and ".join(sorted((one, two)))


@functools.cache
def _heldout_pairs() -> frozenset[str]:
    return frozenset(_lowest_hashes({_pair_name(pair) for pair in all_pairs()}, HELDOUT_FRACTION))


def is_heldout(attributes: Attributes) -> bool:
    """Whether training never sees these attributes; digits are held out by image instead (see images.py)."""
    kind = attributes["kind"]
    if kind == "pair":
        return _pair_name(attributes) in _heldout_pairs()
    return kind != "digit" and caption(attributes) in (heldout_shapes() | heldout_music())


@functools.cache
def of_split(kind: str, split: str) -> tuple[Attributes, ...]:
    """All attributes of a kind (shape, pair, digit, music) in the split; digits are in both."""
    everything = {"shape": all_shapes, "pair": all_pairs, "digit": all_digits, "music": all_music}[kind]()
    if kind == "digit":
        return tuple(everything)
    return tuple(item for item in everything if is_heldout(item) == (split == "heldout"))


@functools.cache
def all_sentences() -> dict[str, tuple[str, ...]]:
    """Everything that is said aloud, by template: 1,122 sentences of three to five words."""
    return {
        "scene": tuple(caption(attributes) for attributes in all_shapes()),
        "request": tuple(
            f"{verb} a {color} {shape}" for verb, color, shape in itertools.product(REQUESTS, COLORS, SHAPES)
        ),
        "number": tuple(f"{verb} the number {digit}" for verb in ("draw", "write") for digit in DIGITS),
        "tune": tuple(f"play a {tempo} {name} tune" for tempo in TEMPOS for name in INSTRUMENTS),
        "digits": tuple(" ".join(digits) for digits in itertools.product(DIGITS, repeat=3)),
    }


@functools.cache
def sentences(split: str) -> dict[str, tuple[str, ...]]:
    """The sentences of a split by template; a fifth of every template is held out."""
    result = {}
    for template, texts in all_sentences().items():
        heldout = _lowest_hashes(texts, HELDOUT_FRACTION)
        result[template] = tuple(text for text in texts if (text in heldout) == (split == "heldout"))
    return result


def words() -> list[str]:
    """Every word that the small world says or writes, sorted."""
    texts = [*_meanings(), *itertools.chain.from_iterable(all_sentences().values())]
    return sorted({word for text in texts for word in text.split()})
