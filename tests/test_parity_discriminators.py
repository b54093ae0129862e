"""The discriminators against SpeechTokenizer's own modules, live (extra `parity`).

One of each kind at the published widths; all thirteen are compared with what was recorded from the package
in tests/test_audio_discriminators.py.
"""

import jax
import numpy as np
import pytest
from anygpt_tokenizers.audio_discriminators import Discriminators
from audio_signals import sound
from discriminator_weights import random_variables

pytestmark = pytest.mark.parity

NETWORKS = Discriminators((3,), 2, (256,))


def test_judgements_and_what_every_layer_found_are_speechtokenizers():
    torch = pytest.importorskip("torch")
    import discriminator_oracle as oracle

    if not oracle.have_originals():
        pytest.skip(f"speechtokenizer 1.0.1 isn't in {oracle.FOLDER} (see launch/parity_apart.txt)")
    package, variables = oracle.originals(), random_variables(NETWORKS)
    kinds = {
        "by_period": (package.MultiPeriodDiscriminator(), slice(1, 2)),
        "by_scale": (package.MultiScaleDiscriminator(), slice(0, 2)),
        "by_spectrum": (package.MultiScaleSTFTDiscriminator(32), slice(3, 4)),
    }
    wave = sound(2, 2003, 16_000, seed=5)
    judgements = iter(jax.jit(NETWORKS.apply)(variables, wave[:, 0]))
    for kind, (network, part) in kinds.items():
        network.discriminators = network.discriminators[part]
        for i, one in enumerate(network.discriminators):
            spectral = variables["spectral"].get(f"{kind}_{i}", {})
            oracle.load(one, oracle.state_of(variables["params"][f"{kind}_{i}"], spectral))
        with torch.no_grad():
            logits, _, features, _ = network.eval()(torch.as_tensor(wave), torch.as_tensor(wave))
        for expected, found in zip(logits, features, strict=True):
            ours = next(judgements)
            if kind == "by_spectrum":
                expected = expected[:, 0]
            elif kind == "by_period":  # ours has the columns one after another
                expected = expected.reshape(2, -1, 3).swapaxes(1, 2)
            expected = expected.reshape(2, -1).numpy()
            assert expected[:, 1:].std() > 0.01
            np.testing.assert_allclose(np.asarray(ours.logits).reshape(2, -1), expected, atol=1e-5, rtol=0)
            for mine, theirs in zip(ours.features, found, strict=True):
                theirs = np.moveaxis(theirs.numpy(), 1, -1)  # [B, …, C]
                if kind == "by_period":
                    theirs = theirs.swapaxes(1, 2).reshape(mine.shape)
                scale = theirs.std()
                np.testing.assert_allclose(mine, theirs, atol=1e-5 * max(1, scale), rtol=0)
    assert next(judgements, None) is None
