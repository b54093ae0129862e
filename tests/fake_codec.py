"""Codecs without weights: enough of the Codec interface to tokenise real files in milliseconds."""

import numpy as np
from anygpt_tokenizers.media_audio import read_audio
from anygpt_tokenizers.media_image import read_image


class FakeAudioCodec:
    """A frame is 160 samples at 8 kHz; its codes are the loudness in steps and a hash of it."""

    kind, num_codebooks, codebook_size = "audio", 2, 64
    sample_rate, hop_length, frame_rate, image_size, fixed_frames = 8000, 160, 50.0, None, None

    def __init__(self, modality: str):
        self.modality, self.hash = modality, f"fake-{modality}"
        self.encoded = 0

    def read_file(self, path):
        return read_audio(path, self.sample_rate)

    def encode_many(self, items):
        self.encoded += len(items)
        return [self._encode(item) for item in items]

    def _encode(self, wave):
        frames = wave[: len(wave) // self.hop_length * self.hop_length].reshape(-1, self.hop_length)
        level = np.clip(np.sqrt((frames**2).mean(1)) * 63, 0, 63).astype(np.int32)
        return np.stack([level, level * 7 % 64], 1)


class FakeImageCodec:
    """A 2×2 grid of mean brightness of an 8×8 picture."""

    modality, kind, num_codebooks, codebook_size = "image", "image", 1, 256
    sample_rate, hop_length, frame_rate, image_size, fixed_frames = None, None, None, 8, 4
    hash = "fake-image"

    def read_file(self, path):
        return read_image(path, self.image_size)

    def encode_many(self, items):
        return [item.reshape(2, 4, 2, 4, 3).mean((1, 3, 4)).astype(np.int32).reshape(4, 1) for item in items]
