"""EnCodec (Défossez et al. 2022) from scratch, with the settings of audiocraft's recipes.

By default the 32 kHz codec of music that MusicGen and AnyGPT use: 50 frames/s, 4 levels of 2048 codes.
"""

from anygpt_tokenizers import recipes
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for 32 kHz, "24khz", "small" for the small world on one CPU, "dummy" for tests."""
    config = recipes.audio()
    config.codec.type = "encodec"
    config.codec.modality = "music"
    config.codec.sample_rate = 32000
    config.codec.num_codebooks = 4
    config.codec.quantizers = 4
    config.codec.codebook_size = 2048
    config.codec.n_filters = 64
    config.codec.strides = (8, 5, 4, 4)
    config.codec.dimension = 128
    config.codec.conv_shortcut = False
    config.codec.causal = False

    config.steps = 400_000
    config.batch_size = 64
    config.crop_frames = 50  # one second
    config.keep_in_memory = False
    config.mel_bands = 64
    config.mel_scales = (64, 128, 256, 512, 1024)
    config.adversary.kind = "hinge"
    config.adversary.networks = config_dict.ConfigDict(
        {"n_ffts": (1024, 2048, 512, 256, 128), "filters": 32, "slope": 0.3}
    )
    config.balance = 0.999
    config.loss_weights = config_dict.ConfigDict(
        {"l1": 0.1, "mel_scales": 2.0, "adversarial": 4.0, "feature": 4.0, "level_commitment": 1.0}
    )
    config.quantize_from = 5
    config.pool = 16384
    config.kmeans_iterations = 50
    config.ema_decay = 0.99
    config.restart_below = 0.03

    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.5
    config.optimizer.b2 = 0.9
    config.optimizer.clip = float("inf")
    config.log_every = 10
    config.save_every = 2000

    if arg == "24khz":
        config.codec.update({"modality": "audio", "sample_rate": 24000, "strides": (8, 5, 4, 2)})
        config.codec.update({"num_codebooks": 32, "quantizers": 32, "codebook_size": 1024, "n_filters": 32})
        config.codec.update({"conv_shortcut": True, "causal": True})
        config.crop_frames = 75
        config.quantizer_dropout = (2, 4, 8, 16, 32)  # 1.5, 3, 6, 12 and 24 kbit/s
    elif arg in ("small", "dummy"):
        small(config)
    elif arg:
        raise ValueError(f"arguments are '', '24khz', 'small' and 'dummy', not {arg!r}")
    if arg == "dummy":
        config.codec.update({"codebook_size": 32, "dimension": 8, "n_filters": 8, "strides": (20, 16)})
        config.codec.lstm_layers = 1
        config.codec.update({"num_codebooks": 3, "quantizers": 3})
        config.quantizer_dropout = (1, 2, 3)
        config.mel_scales = (256,)
        config.adversary.networks.update({"n_ffts": (128,), "filters": 2})
        config.update({"steps": 30, "batch_size": 4, "crop_frames": 6, "pool": 128, "quantize_from": 6})
        config.update({"log_every": 5, "save_every": 10, "kmeans_iterations": 5})
        config.ema_decay = 0.8  # the latents of so few steps move fast
        # Discriminators that know nothing yet would have four fifths of the balanced gradient.
        config.loss_weights.update({"adversarial": 0.1, "feature": 0.1})
        config.optimizer.learning_rate = 1e-3
    return config


def small(config: config_dict.ConfigDict) -> None:
    """A narrow model of sound at 16 kHz."""
    config.keep_in_memory = True
    config.codec.update({"sample_rate": 16000, "strides": (8, 5, 4, 2), "n_filters": 8, "dimension": 64})
    config.codec.update({"codebook_size": 256, "storage_dtype": "float16"})
    config.adversary.networks.update({"n_ffts": (1024, 256), "filters": 4})
    config.update({"steps": 2000, "batch_size": 6, "crop_frames": 25, "pool": 2048, "quantize_from": 200})
    config.balance = 0.99
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 50
    config.save_every = 250
