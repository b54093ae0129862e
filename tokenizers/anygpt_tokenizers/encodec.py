"""EnCodec (Défossez et al. 2022), mono: music at 32 kHz or any sound at 24 kHz.

The 32 kHz model (MusicGen's, which AnyGPT uses) is not causal and has 50 frames a second of 4 codes out of
2048; the 24 kHz model is causal and has 75 frames a second of up to 32 codes out of 1024. The weights come
from `importers.import_encodec`.
"""

import math

from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.published_codec import PublishedCodec


class Encodec(PublishedCodec):
    """See `PublishedCodec`."""

    type = "encodec"

    def levels_for(self, kbps: float) -> int:
        """How many levels fit a bandwidth: 24 kHz has 2, 4, 8, 16, 32 levels at 1.5, 3, 6, 12, 24 kbit/s."""
        bits = math.log2(self.codebook_size) * math.ceil(self.frame_rate)
        levels = max(1, math.floor(1000 * kbps / bits))
        if levels > self.spec.quantizers:
            raise UserError(f"{kbps} kbit/s need {levels} levels; this codec has {self.spec.quantizers}.")
        return levels
