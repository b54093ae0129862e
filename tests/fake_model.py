"""A joint model of random weights, with codecs that need none: its answers are nonsense, but decodable."""

import functools

import jax
import numpy as np
import soundfile
from anygpt_tokenizers.media_audio import read_audio
from anygpt_tokenizers.media_image import read_image
from PIL import Image

from anygpt_jax import vocabulary
from anygpt_jax.checkpoint import LoadedModel
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import init_params
from anygpt_jax.text import TextTokenizer


class NoiseImages:
    """64×64 pictures of a 4×4 grid of grey tiles; the second codebook says nothing."""

    modality, kind, num_codebooks, codebook_size, fixed_frames = "image", "image", 2, 16, 16
    sample_rate, hop_length, frame_rate, image_size = None, None, None, 64
    hash = "noise-image"

    def encode_many(self, items):
        tiles = [item.reshape(4, 16, 4, 16, 3).mean((1, 3, 4)).reshape(16) // 16 for item in items]
        return [np.stack([tile, tile], 1).astype(np.int32) for tile in tiles]

    def read_file(self, path):
        return read_image(path, self.image_size)

    def encode_file(self, path):
        return self.encode_many([self.read_file(path)])[0]

    def check_decodable(self):
        pass

    def decode(self, codes):
        tiles = (codes[..., 0] * 16).astype(np.uint8).reshape(-1, 4, 1, 4, 1, 1)
        return np.broadcast_to(tiles, (len(codes), 4, 16, 4, 16, 3)).reshape(-1, 64, 64, 3)

    def write(self, samples, path):
        Image.fromarray(samples).save(path)


class NoiseAudio:
    """Frames of 640 samples at 16 kHz; a code is a tone's pitch."""

    kind, codebook_size, fixed_frames, image_size = "audio", 16, None, None
    sample_rate, hop_length, frame_rate = 16000, 640, 25.0

    def __init__(self, modality, num_codebooks):
        self.modality, self.num_codebooks, self.hash = modality, num_codebooks, f"noise-{modality}"

    def encode_many(self, items):
        frames = [item[: len(item) // 640 * 640].reshape(-1, 640) for item in items]
        codes = [np.clip(np.abs(part).max(1) * 16, 0, 15).astype(np.int32) for part in frames]
        return [np.repeat(code[:, None], self.num_codebooks, 1) for code in codes]

    def read_file(self, path):
        return read_audio(path, self.sample_rate)

    def encode_file(self, path):
        return self.encode_many([self.read_file(path)])[0]

    def check_decodable(self):
        pass

    def decode(self, codes):
        phase = np.cumsum(np.repeat(0.05 * (1 + codes[..., 0]), 640, axis=1), axis=1)
        return (0.3 * np.sin(phase)).astype(np.float32)

    def write(self, samples, path):
        soundfile.write(path, samples, self.sample_rate, subtype="PCM_16")


CODECS = {"image": NoiseImages(), "speech": NoiseAudio("speech", 1), "music": NoiseAudio("music", 2)}


@functools.cache
def load():
    """A LoadedModel of the dummy size over the small world's text model."""
    tokenizer = TextTokenizer("shipped:smallworld")
    entries = [{"name": "image"}, {"name": "speech", "max_frames": 30}, {"name": "music", "max_frames": 20}]
    vocab = vocabulary.from_config({"modalities": entries}, tokenizer, CODECS)
    config = DecoderConfig.preset("dummy", vocab_size=vocab.padded_size, num_real_rows=vocab.size)
    params = jax.jit(lambda: jax.tree.map(lambda leaf: 3 * leaf, init_params(config, 0)))()
    return LoadedModel(params, config, vocab, tokenizer, CODECS, step=7)
