"""SpeechTokenizer (Zhang et al. 2023): speech at 16 kHz in 50 frames a second of 8 codes out of 1024.

Level 0 holds what is said (its vectors were trained to match HuBERT's features), the levels after it how it
sounds. The weights come from `importers.import_speechtokenizer`; both published variants are served, the one
with ELU and the one with Snake activations that AnyGPT uses.
"""

from collections.abc import Sequence

import numpy as np

from anygpt_tokenizers.published_codec import PublishedCodec


class SpeechTokenizer(PublishedCodec):
    """See `PublishedCodec`."""

    type = "speechtokenizer"

    def semantic_features(self, samples: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Samples float32 [B, T] -> level 0's vectors in the teacher's space, float32 [B, frames, 768]."""
        return np.asarray(self.program(_semantic)(self.encode(samples, lengths, 0, 1)))


def _semantic(module, params, codes):
    return module.apply({"params": params}, codes, method="semantic")
