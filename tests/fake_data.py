"""Batches without a packed directory: documents whose next token follows from the last, two to a row."""

from collections.abc import Iterator

import numpy as np

from anygpt_jax import vocabulary


def small_vocabulary(pad_multiple: int = 64) -> vocabulary.Vocabulary:
    """64 rows of text and three tiny media."""
    return vocabulary.from_text_model(64, None, pad_multiple).extend(
        [
            *vocabulary.CONTROL_TOKENS,
            vocabulary.make_modality(
                "image", 1, 16, kind="image", image_size=8, fixed_frames=4, max_frames=4
            ),
            vocabulary.make_modality("speech", 1, 16, frame_rate=25.0, sample_rate=16000, max_frames=20),
            vocabulary.make_modality("music", 2, 8, frame_rate=25.0, sample_rate=16000, max_frames=20),
        ]
    )


class NoText:
    """Stands where a text tokenizer would be; nothing is read as text."""

    def save(self, path: str) -> None:
        """Writes nothing."""


class FakeData:
    """The interface of data.pipeline.PackedData; a batch is a pure function of seed and step."""

    def __init__(self, batch_size: int = 8, seq_len: int = 32, seed: int = 0):
        self.vocabulary = small_vocabulary()
        self.directions = self.vocabulary.directions()
        self.text_tokenizer = NoText()
        self.contents = {}
        self.seq_len, self._batch_size, self._seed = seq_len, batch_size, seed

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((self._seed, step))
        shape = (self._batch_size, 2, self.seq_len // 2)
        first = rng.integers(0, self.vocabulary.size, (*shape[:2], 1))
        tokens = (first + 7 * np.arange(shape[2] + 1)) % self.vocabulary.size
        positions = np.broadcast_to(np.arange(shape[2]), shape)
        roles = np.where(positions < 4, 1, 2) * (positions < shape[2] - 1)
        directions = np.broadcast_to(rng.integers(0, len(self.directions), (*shape[:2], 1)), shape)
        arrays = {
            "tokens": tokens[..., :-1],
            "targets": np.where(roles > 0, tokens[..., 1:], 0),
            "segment_ids": np.broadcast_to(np.array([1, 2])[:, None], shape),
            "positions": positions,
            "target_roles": roles,
            "directions": directions,
        }
        flat = (self._batch_size, self.seq_len)
        return {name: np.ascontiguousarray(a.reshape(flat), np.int32) for name, a in arrays.items()}

    def iterator(self, start_step: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
        del prefetch
        while True:
            yield self.batch(start_step)
            start_step += 1
