"""Teachers for distillation that need no weights.

Of sound they are functions (wave [T], rate) -> features [F, S], of pictures uint8 [B, S, S, 3] -> [B, E].
"""

import librosa
import numpy as np
from PIL import Image

CEPSTRA = 13
CELLS = 8


def cepstra(wave: np.ndarray, rate: int, frame_rate: int = 50) -> np.ndarray:
    """13 mel cepstra and their first and second differences in time: float32 [F, 39], mean 0, variance 1.

    The features of classical speech recognisers. Normalised per clip, they say little about the voice and the
    loudness, which is what a teacher of the semantic level is for.
    """
    hop = rate // frame_rate
    wave = np.asarray(wave, np.float32)
    mel = librosa.feature.melspectrogram(y=wave, sr=rate, n_fft=4 * hop, hop_length=hop, n_mels=40)
    static = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=CEPSTRA)  # [13, F]
    width = min(9, (static.shape[1] - 1) // 2 * 2 + 1)
    if width < 3:
        changes = [np.zeros_like(static)] * 2
    else:
        changes = [librosa.feature.delta(static, width=width, order=order) for order in (1, 2)]
    features = np.concatenate([static, *changes]).T
    return ((features - features.mean(0)) / (features.std(0) + 1e-3)).astype(np.float32)


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Pictures uint8 [B, S, S, 3] -> the mean colours of 8 × 8 cells, float32 [B, 192], from -2 to 2.

    A stand-in for CLIP where no weights are: it says what colour is where, not what is meant.
    """
    small = [Image.fromarray(picture).resize((CELLS, CELLS), Image.Resampling.BOX) for picture in pixels]
    cells = np.stack([np.asarray(picture, np.float32) for picture in small])
    return (cells.reshape(len(cells), -1) / 255 - 0.5) * 4
