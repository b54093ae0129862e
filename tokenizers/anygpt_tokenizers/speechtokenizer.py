"""SpeechTokenizer (Zhang et al. 2023): speech at 16 kHz in 50 frames a second of 8 codes out of 1024.

Level 0 holds what is said (its vectors were trained to match HuBERT's features), the levels after it how it
sounds. The weights come from `importers.import_speechtokenizer`; both published variants are served, the one
with ELU and the one with Snake activations that AnyGPT uses.

A language model that reads and writes level 0 alone, as AnyGPT does, has a codec with `num_codebooks` 1 and
the directory soundstorm/ below it, written by `import-soundstorm` or by training `configs/soundstorm.py`:
`decode` then lets SoundStorm tell the other levels, in the voice of a prompt if there is one.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import CONFIG_FILE
from anygpt_tokenizers.published_codec import PublishedCodec, bucket, checked_lengths
from anygpt_tokenizers.soundstorm import SoundStorm

SOUNDSTORM = "soundstorm"


class SpeechTokenizer(PublishedCodec):
    """See `PublishedCodec`. The SoundStorm is not part of the hash, since no code depends on it.

    Attribute: directory, where the codec was read from, if it was.
    """

    type = "speechtokenizer"
    directory: Path | None = None

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike) -> Self:
        """Reads what `save_pretrained` wrote, the SoundStorm when it is first needed."""
        codec = super().from_pretrained(directory)
        codec.directory = Path(directory)
        return codec

    def save_pretrained(self, directory: str | os.PathLike) -> None:
        """Writes config.json and weights.safetensors, and copies the SoundStorm."""
        here = self.directory is not None and Path(directory).resolve() == self.directory.resolve()
        if self._speaks and not here:
            shutil.copytree(self.directory / SOUNDSTORM, Path(directory, SOUNDSTORM), dirs_exist_ok=True)
        super().save_pretrained(directory)

    def decode(
        self,
        codes: np.ndarray,
        lengths: Sequence[int] | None = None,
        first: int = 0,
        voice: np.ndarray | None = None,
    ) -> np.ndarray:
        """As `PublishedCodec.decode`; a codec with a SoundStorm has it fill up level 0 beforehand.

        `voice` int32 [frames, quantizers] is what `encode_voice` gives, for all rows. UserError if this codec
        can't follow one.
        """
        if not self._speaks:
            if voice is not None:
                raise UserError(f"The {self.modality} codec follows no voice: {self._why_silent()}")
            return super().decode(codes, lengths, first)
        codes = self.check_codes(codes, first)
        if first or codes.shape[-1] > 1:
            if voice is not None:
                raise UserError("Give level 0 alone with a voice; the other levels tell theirs.")
            return super().decode(codes, lengths, first)
        lengths = checked_lengths(lengths, *codes.shape[:2], "frames")
        return super().decode(self._filled(codes[..., 0], lengths, voice), lengths)

    def check_decodable(self) -> None:
        """UserError if the SoundStorm that `decode` uses can't be read or is another codec's."""
        if self._speaks:
            _ = self.soundstorm

    def encode_voice(self, path: str | os.PathLike) -> np.ndarray:
        """A file of speech -> all levels of it, int32 [frames, quantizers]; MediaError if it is unusable."""
        return self.encode(self.read_file(path)[None], None, 0, self.spec.quantizers)[0]

    @functools.cached_property
    def soundstorm(self) -> SoundStorm:
        """The model in soundstorm/; UserError if its sizes are not this codec's."""
        model = SoundStorm.from_pretrained(self.directory / SOUNDSTORM)
        spec, size = model.spec, self.codebook_size
        theirs = 1 + spec.levels, spec.semantic_size, spec.codebook_size
        if theirs != (self.spec.quantizers, size, size):
            raise UserError(
                f"{self.directory / SOUNDSTORM} is for {theirs[0]} levels of {theirs[1]} and {theirs[2]} "
                f"codes; this codec has {self.spec.quantizers} of {size}."
            )
        return model

    @property
    def _speaks(self) -> bool:
        """Whether a SoundStorm fills up what `decode` gets."""
        return not self._why_silent()

    def _why_silent(self) -> str:
        if self.num_codebooks > 1:
            return f"its tokens are {self.num_codebooks} levels, not level 0 alone."
        if self.directory is None or not (self.directory / SOUNDSTORM / CONFIG_FILE).is_file():
            return f"there is no SoundStorm in {SOUNDSTORM}/ of its directory."
        return ""

    def _filled(self, semantic: np.ndarray, lengths: np.ndarray, voice: np.ndarray | None) -> np.ndarray:
        """Level 0 [B, F] -> all levels [B, F, quantizers], zeros after each row's length."""
        model, frames = self.soundstorm, semantic.shape[1]
        prompt = None if voice is None else np.broadcast_to(voice, (len(semantic), *voice.shape))
        if model.options.mode == "corrected":
            padded = np.pad(semantic, ((0, 0), (0, bucket(frames) - frames)))  # few lengths, few compilations
            return model.generate(padded, prompt, lengths)[:, :frames]
        filled = np.zeros((*semantic.shape, self.spec.quantizers), np.int32)
        for row, length in enumerate(lengths):  # the original's way knows no lengths
            alone = None if prompt is None else prompt[row : row + 1]
            filled[row, :length] = model.generate(semantic[row : row + 1, :length], alone)[0]
        return filled

    def semantic_features(self, samples: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Samples float32 [B, T] -> level 0's vectors in the teacher's space, float32 [B, frames, 768]."""
        return np.asarray(self.program(_semantic)(self.encode(samples, lengths, 0, 1)))


def _semantic(module, params, codes):
    return module.apply({"params": params}, codes, method="semantic")
