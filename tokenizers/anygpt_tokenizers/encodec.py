"""EnCodec (Défossez et al. 2022): music at 32 kHz, any sound at 24 kHz, stereo at 48 kHz.

The 32 kHz model (MusicGen's, which AnyGPT uses) is not causal and has 50 frames a second of 4 codes out of
2048; the 24 kHz model is causal and has 75 frames a second of up to 32 codes out of 1024. The 48 kHz model is
not causal, works in chunks of a second, and divides each by its loudness: its codes alone don't say how loud
the sound is, so a scale per chunk goes beside them. The weights come from `importers.import_encodec`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.encodec_chunks import check_scaling, chunking_of, loudness, overlap_add
from anygpt_tokenizers.published_codec import ROWS, PublishedCodec, checked_lengths


class ScaledCodes(NamedTuple):
    """Codes of a codec that works in chunks or divides by the loudness.

    codes: int32 [B, frames, codebooks], a row's chunks one after another, zeros after its end.
    scales: float32 [B, chunks], the loudness of each (1 if the codec doesn't divide by it), zeros after the
      row's last chunk. With the number of frames, their number says where chunks begin.
    frames: int [B], frames of each row.
    """

    codes: np.ndarray
    scales: np.ndarray
    frames: np.ndarray


class Encodec(PublishedCodec):
    """See `PublishedCodec`.

    Attributes:
      normalize: whether sound is divided by its loudness before it is encoded.
      chunking: how clips are cut, or None.
      has_scales: whether either is so. Then `encode_scaled` encodes, `decode` needs its scales, and `encode`
        (which all take that know nothing of scales) is refused.
    """

    type = "encodec"

    def __init__(self, config: dict, params: dict):
        super().__init__(config, params)
        check_scaling(self.config, self.sample_rate)
        self.normalize: bool = self.config.get("normalize", False)
        self.chunking = chunking_of(self.config, self.hop_length)
        self.has_scales = self.normalize or self.chunking is not None

    def levels_for(self, kbps: float) -> int:
        """How many levels fit a bandwidth: 24 kHz has 2, 4, 8, 16, 32 levels at 1.5, 3, 6, 12, 24 kbit/s."""
        bits = math.log2(self.codebook_size) * math.ceil(self.frame_rate)
        levels = max(1, math.floor(1000 * kbps / bits))
        if levels > self.spec.quantizers:
            raise UserError(f"{kbps} kbit/s need {levels} levels; this codec has {self.spec.quantizers}.")
        return levels

    def encode(
        self,
        samples: np.ndarray,
        lengths: Sequence[int] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> np.ndarray:
        """See `PublishedCodec.encode`; UserError if the codec has scales."""
        if self.has_scales:
            raise UserError(
                "This EnCodec keeps the loudness of every chunk beside the codes, which codes alone can't "
                "give back: use encode_scaled and decode(…, scales=…), or a codec that has no scales."
            )
        return super().encode(samples, lengths, first, last)

    def encode_scaled(
        self,
        samples: np.ndarray,
        lengths: Sequence[int] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> ScaledCodes:
        """Samples float32 [B, T] -> codes and scales; arguments and errors as of `PublishedCodec.encode`.

        As transformers' `EncodecModel.encode` of each row's samples, without padding.
        """
        samples, lengths = self._checked_samples(samples, lengths)
        clips, rows = [], []
        for row, length in enumerate(lengths):
            places = self.chunking.places(length) if self.chunking else [(0, length)]
            clips += [samples[row, start:end] for start, end in places]
            rows += [row] * len(places)
        rows, codes = np.array(rows), []
        scales = np.array([loudness(clip) if self.normalize else 1 for clip in clips], np.float32)
        for at in range(0, len(clips), ROWS):
            part = slice(at, at + ROWS)
            scaled = [clip / scale for clip, scale in zip(clips[part], scales[part], strict=True)]
            counts = [len(clip) for clip in scaled]
            found = super().encode(_stack(scaled), counts, first, last)
            codes += [row[: -(-count // self.hop_length)] for row, count in zip(found, counts, strict=True)]
        whole = [
            np.concatenate([codes[i] for i in np.flatnonzero(rows == row)]) for row in range(len(samples))
        ]
        return ScaledCodes(
            _stack(whole),
            _stack([scales[rows == row] for row in range(len(samples))]),
            np.array([len(row) for row in whole]),
        )

    def decode(
        self,
        codes: np.ndarray,
        lengths: Sequence[int] | None = None,
        first: int = 0,
        scales: np.ndarray | None = None,
    ) -> np.ndarray:
        """See `PublishedCodec.decode`; a codec with scales needs them, float32 [B, chunks].

        `lengths` are the `frames` of `encode_scaled` then, and a row's scales end where they are 0. Chunks
        become float32 [B, T], T up to a frame more per row than was encoded, as in transformers'
        `EncodecModel.decode`; samples after a row's end are 0.
        """
        if not self.has_scales:
            if scales is not None:
                raise UserError("This EnCodec has no scales (its config has no normalize and no chunks).")
            return super().decode(codes, lengths, first)
        codes = self.check_codes(codes, first)
        lengths = checked_lengths(lengths, *codes.shape[:2], "frames")
        counts = self._checked_scales(scales, len(codes))
        pieces = []
        for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
            split = self.chunking.split(length, count) if self.chunking else [length]
            pieces += np.split(codes[row, :length], np.cumsum(split)[:-1])
        factors = np.concatenate([scales[row][:count] for row, count in enumerate(counts)])
        sounds = []
        for at in range(0, len(pieces), ROWS):
            part = pieces[at : at + ROWS]
            frames = [len(piece) for piece in part]
            waves = super().decode(_stack(part), frames, first)
            sounds += [wave[: n * self.hop_length] for wave, n in zip(waves, frames, strict=True)]
        sounds = [sound * np.float32(factor) for sound, factor in zip(sounds, factors, strict=True)]
        if not self.chunking:
            return _stack(sounds)
        ends, stride = np.cumsum(counts), self.chunking.stride
        return _stack(
            [overlap_add(sounds[end - n : end], stride) for end, n in zip(ends, counts, strict=True)]
        )

    def _checked_scales(self, scales: np.ndarray | None, rows: int) -> np.ndarray:
        """How many scales each row has, int [B]."""
        if scales is None:
            raise UserError("This EnCodec decodes codes with the scales that encode_scaled gave: scales=…")
        scales = np.asarray(scales)
        known = scales.ndim == 2 and len(scales) == rows and scales.dtype.kind == "f"
        counts = (scales != 0).sum(1) if known else np.zeros(rows, int)
        one = self.chunking is not None or (counts == 1).all()
        if not (counts.all() and one and np.isfinite(scales).all() and (scales >= 0).all()):
            raise UserError(
                f"`scales` are positive numbers [{rows}, chunks], zeros after a row's last chunk"
                f"{'' if self.chunking else ', of which this codec has one'}; not {np.shape(scales)}."
            )
        return counts


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    """Arrays [n, …] of several lengths as one [B, max n, …], zeros behind."""
    out = np.zeros((len(rows), max(map(len, rows)), *rows[0].shape[1:]), rows[0].dtype)
    for row, values in zip(out, rows, strict=True):
        row[: len(values)] = values
    return out
