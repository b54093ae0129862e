"""The small speech codec: 16 kHz, 25 frames/s, one codebook of 1024 codes (250 bit/s)."""

from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the shipped codec, "dummy" for tests."""
    config = config_dict.ConfigDict()
    config.kind = "audio"
    config.seed = 0

    config.codec = config_dict.ConfigDict()
    config.codec.modality = "speech"
    config.codec.sample_rate = 16000
    config.codec.num_codebooks = 1
    config.codec.codebook_size = 1024
    config.codec.dimension = 64
    config.codec.front = "stft"
    config.codec.head = "istft"
    config.codec.n_fft = 640
    config.codec.stft_hop = 160
    config.codec.encoder_filters = 128
    config.codec.encoder_strides = (4,)
    config.codec.decoder_filters = 192
    config.codec.decoder_strides = (4,)
    config.codec.residual_layers = 1
    config.codec.floor = 2e-4
    config.codec.refinements = 16
    config.codec.storage_dtype = "float16"

    config.steps = 4000
    config.batch_size = 16
    config.crop_frames = 25
    config.speed_range = (0.88, 1.14)
    config.gain_range = (0.6, 1.1)
    config.mel_bands = 80
    config.stft_sizes = (256, 512, 1024)
    config.loss_weights = config_dict.ConfigDict(
        {"log": 1.0, "log_squared": 0.5, "mel": 1.0, "convergence": 1.0, "advance": 0.5, "commitment": 0.25}
    )
    config.quantize_from = 600
    config.pool = 8192
    config.ema_decay = 0.98
    config.restart_below = 0.03

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 30
    config.optimizer.weight_decay = 1e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.clip = 1.0
    config.log_every = 50
    config.save_every = 250

    if arg == "dummy":
        config.codec.update({"codebook_size": 32, "dimension": 8, "encoder_filters": 8, "decoder_filters": 8})
        config.codec.refinements = 1
        config.update({"steps": 20, "batch_size": 4, "crop_frames": 8, "quantize_from": 5, "pool": 128})
        config.update({"log_every": 5, "save_every": 20})
        config.optimizer.warmup = 2
        config.optimizer.learning_rate = 1e-2
    elif arg:
        raise ValueError(f"arguments are '' and 'dummy', not {arg!r}")
    return config
