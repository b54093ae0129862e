"""Test sounds, and how clearly a code was chosen."""

import numpy as np


def sound(rows: int, samples: int, rate: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, 1, samples]: gliding tones with changing loudness, and noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / rate
    wave = 0.05 * rng.standard_normal((rows, samples))
    for row in range(rows):
        for _ in range(4):
            pitch, glide, beat = rng.uniform(80, 3000), rng.uniform(-400, 400), rng.uniform(1, 6)
            phase = 2 * np.pi * (pitch * time + glide * time**2)
            wave[row] += 0.15 * np.sin(phase) * np.sin(2 * np.pi * beat * time + rng.uniform(0, 6)) ** 2
    return wave[:, None].astype(np.float32)


def margins(codebooks: np.ndarray, latents: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """How clearly each of `codes` [..., K] of `latents` [..., D] wins: float64 [..., K].

    It is the gap between the two nearest vectors' squared distances, relative to the smaller.
    """
    residual, gaps = latents.astype(np.float64), []
    for level, book in enumerate(codebooks.astype(np.float64)):
        distance = (residual**2).sum(-1)[..., None] - 2 * residual @ book.T + (book**2).sum(-1)
        best = np.sort(distance, axis=-1)[..., :2]
        gaps.append((best[..., 1] - best[..., 0]) / np.maximum(best[..., 0], 1e-30))
        residual = residual - book[codes[..., level]]
    return np.stack(gaps, -1)
