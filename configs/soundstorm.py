"""SoundStorm (Borsos et al. 2023) for SpeechTokenizer's codes: python -m anygpt_tokenizers.train --config=…

The settings of soundstorm-speechtokenizer, whose model AnyGPT uses. The manifest names codes [frames, 8] in
.npy files ("codes"), or sound files ("speech") that the codec in `config.codes.codec` encodes; from it the
embeddings are taken, too.
"""

import dataclasses

from anygpt_tokenizers.soundstorm_net import SoundStormSpec
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the published sizes, "small" for one CPU, "dummy" for tests."""
    config = config_dict.ConfigDict()
    config.kind = "soundstorm"
    config.seed = 0
    config.net = config_dict.ConfigDict(dataclasses.asdict(SoundStormSpec()))
    config.codes = config_dict.ConfigDict({"field": "codes", "codec": "", "modality": "speech"})
    config.max_frames = 750  # 15 seconds
    config.steps = 200_000
    config.batch_size = 16
    config.evaluate_clips = 50

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 6e-4
    config.optimizer.start = 3e-5
    config.optimizer.warmup = 4000
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.clip = 0.5
    config.log_every = 50
    config.save_every = 1000

    if arg == "small":
        config.net.update({"dim": 128, "depth": 4, "heads": 4, "head_dim": 32, "levels": 3})
        config.net.update({"codebook_size": 256, "semantic_size": 256})  # speechtokenizer.py:small
        config.update({"max_frames": 150, "steps": 3000, "batch_size": 8, "save_every": 250})
        config.optimizer.warmup = 200
    elif arg == "dummy":
        config.net.update({"dim": 32, "depth": 1, "heads": 2, "head_dim": 16, "ff_mult": 2, "levels": 3})
        config.net.update({"codebook_size": 8, "semantic_size": 6, "conv_kernel": 5})
        config.update({"max_frames": 16, "steps": 300, "batch_size": 16, "log_every": 50, "save_every": 100})
        config.optimizer.update({"learning_rate": 1e-2, "start": 1e-3, "warmup": 10})
    elif arg:
        raise ValueError(f"arguments are '', 'small' and 'dummy', not {arg!r}")
    return config
