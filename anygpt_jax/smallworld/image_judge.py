"""Judges pictures: scikit-image measures colours and shapes, scikit-learn reads the handwritten digits."""

import functools
import itertools

import numpy as np
from scipy.ndimage import center_of_mass, gaussian_filter, shift
from skimage.color import rgb2lab
from skimage.measure import label, regionprops
from sklearn.svm import SVC

from anygpt_jax.smallworld import captions, images

# Thresholds in CIELAB. A pixel of a shape has colour (chroma), ink has none and is dark.
_MIN_CHROMA = 35.0
_MAX_INK_CHROMA, _MAX_INK_LIGHTNESS = 20.0, 65.0
_MIN_AREA = 36  # pixels; the smallest shape has about 80
_MIN_MATCH = 0.5  # 1 is a perfect shape, 0 as bad as nothing
_RADII = tuple(np.arange(5.0, 13.6, 0.75).tolist())
_SOFTNESS = (0.6, 1.5)  # blur of the templates, pixels
_SIZE_BOUNDARY = sum(images.RADIUS.values()) / 2


def judge_image(rgb: np.ndarray) -> captions.Attributes:
    """What a picture shows, uint8 [64, 64, 3]: attributes as in captions.py, of a pair the canonical ones.

    A picture that is neither one shape, nor two, nor a digit is {"kind": "unknown"}.
    """
    lab = rgb2lab(gaussian_filter(rgb.astype(np.float32) / 255, (0.5, 0.5, 0)))
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    colored = chroma > _MIN_CHROMA
    ink = (lab[..., 0] < _MAX_INK_LIGHTNESS) & (chroma < _MAX_INK_CHROMA)
    if ink.sum() > max(colored.sum(), _MIN_AREA):
        return {
            "kind": "digit",
            "digit": captions.DIGITS[int(_digit_classifier().predict([_ink_features(rgb)])[0])],
        }
    found = [_describe(region, name, chroma) for name, region in _regions(lab, colored)]
    if len(found) == 1:
        return {"kind": "shape", **found[0][0]}
    if len(found) != 2:
        return {"kind": "unknown"}
    (first, (y, x)), (second, (y2, x2)) = found
    if abs(x - x2) > abs(y - y2):
        relation = "left of" if x < x2 else "right of"
    else:
        relation = "above" if y < y2 else "below"
    second = {key + "2": value for key, value in second.items()}
    return captions.canonical({"kind": "pair", **first, "relation": relation, **second})


@functools.cache
def _palette() -> tuple[list[str], np.ndarray]:
    """The colours' names and their unit vectors in the (a, b) plane [6, 2]."""
    names = list(images.PALETTE)
    lab = rgb2lab(np.array([[images.PALETTE[name] for name in names]], np.uint8))[0]
    return names, lab[:, 1:] / np.linalg.norm(lab[:, 1:], axis=1, keepdims=True)


def _regions(lab, colored):
    """The connected regions of one colour that are large enough: (colour, mask [64, 64])."""
    names, hues = _palette()
    nearest = np.argmax(lab[..., 1:] @ hues.T, axis=-1)
    regions = []
    for index, name in enumerate(names):
        labels = label(colored & (nearest == index), connectivity=2)
        regions += [(name, labels == found.label) for found in regionprops(labels) if found.area >= _MIN_AREA]
    return regions


def _describe(mask, color, chroma):
    """Size and shape of a region by the best matching template: ({size, color, shape}, (y, x))."""
    level = np.percentile(chroma[mask], 75)
    coverage = np.clip(chroma / level, 0, 1) * mask
    names, spectra, energies = _templates()
    # 1 - |coverage - shifted template|² / |template|², at the best of all shifts.
    overlaps = np.fft.irfft2(np.fft.rfft2(coverage) * spectra.conj(), coverage.shape).max(axis=(1, 2))
    matches = (2 * overlaps - np.sum(coverage**2)) / energies
    best = int(np.argmax(matches))
    shape, radius = names[best]
    size = "small" if radius < _SIZE_BOUNDARY else "large"
    shape = shape if matches[best] >= _MIN_MATCH else "unknown"
    return {"size": size, "color": color, "shape": shape}, center_of_mass(mask)


@functools.cache
def _templates() -> tuple[list[tuple[str, float]], np.ndarray, np.ndarray]:
    """(shape, radius) of T templates, their spectra [T, 64, 33], energies [T]; half are soft as codecs."""
    names = list(itertools.product(captions.SHAPES, _RADII, _SOFTNESS))
    coverages = []
    for shape, radius, softness in names:
        drawn = images.draw_shapes([(shape, (0, 0, 0), 32.0, 32.0, radius)])[..., 0]
        coverages.append(gaussian_filter(1 - drawn / 255.0, softness))
    spectra, energies = np.fft.rfft2(coverages), np.sum(np.square(coverages), axis=(1, 2))
    return [(shape, radius) for shape, radius, _ in names], spectra, energies


def _ink_features(rgb: np.ndarray) -> np.ndarray:
    """Ink moved to the middle, softened and averaged over 4 × 4 pixels: [256]."""
    ink = np.clip(1 - rgb.mean(axis=-1) / 240.0, 0, 1)
    ink = shift(ink, 31.5 - np.array(center_of_mass(ink + 1e-6)), order=1)
    return gaussian_filter(ink, 1.0).reshape(16, 4, 16, 4).mean(axis=(1, 3)).ravel()


@functools.cache
def _digit_classifier() -> SVC:
    """Fitted on the training digits as the world draws them, sharp and blurred."""
    rng = np.random.default_rng(0)
    features, labels = [], []
    for digit, indices in images.digit_indices("train").items():
        for index in indices:
            drawn = images.draw_digit(int(index), rng)
            blurred = gaussian_filter(drawn, (rng.uniform(0.5, 2.0), rng.uniform(0.5, 2.0), 0))
            features += [_ink_features(drawn), _ink_features(blurred)]
            labels += [digit, digit]
    return SVC(C=10.0, gamma="scale").fit(features, labels)
