"""What the model says about a packed row is what it says about each of its documents alone."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anygpt_jax.data import packing, records
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.model.decoder import Decoder, init_params
from anygpt_jax.prompts import Document

SEQ_LEN, MAX_DOCUMENTS = 24, 8
CONFIG = DecoderConfig.preset("dummy", vocab_size=128, num_real_rows=100)
PARAMS = init_params(CONFIG, seed=0)


@jax.jit
def logits(tokens, positions, segment_ids):
    """[B, T] -> float32 [B, T, vocabulary]."""
    model = Decoder(CONFIG)
    hidden, _ = model.apply({"params": PARAMS}, tokens, positions, segment_ids)
    return model.apply({"params": PARAMS}, hidden, method="logits")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, SEQ_LEN), min_size=1, max_size=MAX_DOCUMENTS), st.integers(0, 2**16))
def test_packed_logits_equal_unpacked_logits(lengths, seed):
    rng = np.random.default_rng(seed)
    documents = [
        Document(rng.integers(0, CONFIG.num_real_rows, length), np.ones(length, np.uint8), "text")
        for length in lengths
    ]
    alone = np.zeros((MAX_DOCUMENTS, SEQ_LEN), np.int32)
    for index, document in enumerate(documents):
        alone[index, : len(document.ids)] = document.ids
    positions = np.broadcast_to(np.arange(SEQ_LEN), alone.shape)
    unpacked = np.asarray(logits(alone, positions, np.ones_like(alone)))

    rows = packing.best_fit(lengths, SEQ_LEN)
    decoded = [
        records.decode_row(records.encode_row([documents[i] for i in row], {"text": 0}), SEQ_LEN)
        for row in rows
    ]
    arrays = {
        name: np.zeros((MAX_DOCUMENTS, SEQ_LEN), np.int32) for name in ("tokens", "positions", "segment_ids")
    }
    for index, row in enumerate(decoded):
        for name, array in arrays.items():
            array[index] = row[name]
    packed = np.asarray(logits(arrays["tokens"], arrays["positions"], arrays["segment_ids"]))
    for index, row in enumerate(rows):
        for segment, document in enumerate(row, start=1):
            inside = arrays["segment_ids"][index] == segment
            expected = unpacked[document, : lengths[document]]
            np.testing.assert_allclose(packed[index][inside], expected, rtol=0, atol=2e-5)
