"""Pictures of the small world: 64 × 64 RGB on white, coloured shapes or a real handwritten digit."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from anygpt_jax.smallworld import captions

SIZE = 64
PALETTE = {
    "red": (220, 35, 40),
    "green": (40, 165, 65),
    "blue": (40, 85, 215),
    "yellow": (245, 215, 40),
    "purple": (140, 45, 175),
    "orange": (250, 130, 25),
}
RADIUS = {"small": 6.5, "large": 11.5}  # half of a shape's width, pixels
_OVERSAMPLING = 4
# Where the two shapes of a pair stand (x, y); a single shape stands in the middle.
_NEAR, _MIDDLE, _FAR = 16.5, 32.0, 47.5
_FIRST = {
    "above": (_MIDDLE, _NEAR),
    "below": (_MIDDLE, _FAR),
    "left of": (_NEAR, _MIDDLE),
    "right of": (_FAR, _MIDDLE),
}
_JITTER_SINGLE, _JITTER_DIGIT = 8.0, 2
# The shapes of a training pair stand less strictly, so that they look like single ones in other places.
_JITTER_PAIR = {"train": 2.5, "heldout": 1.5}
_TILT = 10.0  # degrees at most, in training only: a few hundred pages of handwriting are soon known by heart
_DIGIT_PIXELS = 60  # of 8 × 8 pixels and a margin of one, without which the ink would end at an edge


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a square or triangle, or the two corners of a circle's box, as (x, y) in pixels."""
    if shape == "triangle":
        return [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
    if shape == "square":
        # A square as wide as the circle would look larger than it; this one has nearly the circle's area.
        half = radius * math.sqrt(math.pi) / 2
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    return [(x - radius, y - radius), (x + radius, y + radius)]


def draw_shapes(shapes: list[tuple[str, tuple[int, int, int], float, float, float]]) -> np.ndarray:
    """Draws (shape, colour, x, y, radius) on white, antialiased: uint8 [64, 64, 3]."""
    scale = _OVERSAMPLING
    canvas = Image.new("RGB", (SIZE * scale, SIZE * scale), "white")
    pen = ImageDraw.Draw(canvas)
    for shape, color, x, y, radius in shapes:
        points = [(scale * px, scale * py) for px, py in outline(shape, x, y, radius)]
        (pen.ellipse if shape == "circle" else pen.polygon)(points, fill=color)
    return np.asarray(canvas.reduce(scale))


def draw(attributes: captions.Attributes, rng: np.random.Generator, split: str = "train") -> np.ndarray:
    """One picture of the attributes: uint8 [64, 64, 3]; `split` decides which handwriting a digit may use."""
    if attributes["kind"] == "digit":
        choices = digit_indices(split)[captions.DIGITS.index(attributes["digit"])]
        return draw_digit(int(rng.choice(choices)), rng, tilt=_TILT if split == "train" else 0.0)
    if attributes["kind"] == "shape":
        return draw_shapes([_placed(attributes, "", (_MIDDLE, _MIDDLE), _JITTER_SINGLE, rng)])
    relation = attributes["relation"]
    first = _placed(attributes, "", _FIRST[relation], _JITTER_PAIR[split], rng)
    second = _placed(attributes, "2", _FIRST[captions.CONVERSE[relation]], _JITTER_PAIR[split], rng)
    return draw_shapes([first, second])


def _placed(attributes, suffix, center, jitter, rng):
    x, y = np.asarray(center) + rng.uniform(-jitter, jitter, 2)
    base = np.asarray(PALETTE[attributes["color" + suffix]])
    color = tuple(int(value) for value in np.clip(base + rng.integers(-8, 9, 3), 0, 255))
    radius = RADIUS[attributes["size" + suffix]] * rng.uniform(0.95, 1.05)
    return attributes["shape" + suffix], color, float(x), float(y), radius


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: ink [1797, 8, 8] from 0 to 1, and their official labels [1797]."""
    data = load_digits()
    return data.images / 16.0, data.target


@functools.cache
def digit_indices(split: str) -> dict[int, np.ndarray]:
    """For each label, which of scikit-learn's digits belong to the split (a fifth is held out)."""
    labels = _digits()[1]
    fraction = np.array([captions.hash_fraction(f"digit {index}") for index in range(len(labels))])
    chosen = (fraction < captions.HELDOUT_FRACTION) == (split == "heldout")
    return {label: np.flatnonzero(chosen & (labels == label)) for label in range(10)}


def draw_digit(index: int, rng: np.random.Generator, tilt: float = 0.0) -> np.ndarray:
    """Digit number `index` of scikit-learn's set, enlarged smoothly, dark ink on white: uint8 [64, 64, 3].

    Turned by up to `tilt` degrees either way, and stretched by up to a percent for each degree.
    """
    ink = Image.fromarray(np.pad(_digits()[0][index], 1).astype(np.float32))
    large = ink.resize((_DIGIT_PIXELS, _DIGIT_PIXELS), Image.Resampling.BICUBIC)
    if tilt:
        large = _deformed(large, *rng.uniform(-tilt, tilt, 3))
    large = np.clip(np.asarray(large), 0, 1)
    page = np.zeros((SIZE, SIZE), np.float32)
    margin = (SIZE - _DIGIT_PIXELS) // 2
    top, left = margin + rng.integers(-_JITTER_DIGIT, _JITTER_DIGIT + 1, 2)
    page[top : top + _DIGIT_PIXELS, left : left + _DIGIT_PIXELS] = large
    gray = np.round(255 - 225 * page).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _deformed(page: Image.Image, degrees: float, wider: float, taller: float) -> Image.Image:
    """The page turned about its middle, its sides longer by `wider` and `taller` percent."""
    angle, middle = math.radians(degrees), page.width / 2
    sin, cos = math.sin(angle), math.cos(angle)
    across, down = 1 + wider / 100, 1 + taller / 100
    # Pillow asks where each pixel of the result comes from.
    rows = ((cos / across, sin / across), (-sin / down, cos / down))
    (a, b), (d, e) = rows
    shift = (middle - (a + b) * middle, middle - (d + e) * middle)
    return page.transform(
        page.size, Image.Transform.AFFINE, (a, b, shift[0], d, e, shift[1]), Image.Resampling.BICUBIC
    )
