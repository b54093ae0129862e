"""SpeechTokenizer (Zhang et al. 2023) from scratch: 16 kHz, 50 frames/s, 8 levels of 1024 codes.

The sizes and weights of the published recipe. HuBERT's features, which level 0 learns to tell, are read from
.npy files [frames, 768] that the manifest names in "features", at 50 frames a second (the mean over all
layers of HuBERT base's hidden states there). The codebooks start from k-means after a few batches rather
than on the first, which has fewer frames than there are codes. Every level's commitment reaches the encoder,
where in the original code only level 0's does (see `AudioTraining.loss`).
"""

from anygpt_tokenizers import recipes
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the published sizes, "small" for the small world on one CPU, "dummy" for tests."""
    config = recipes.audio()
    config.codec.type = "speechtokenizer"
    config.codec.modality = "speech"
    config.codec.sample_rate = 16000
    config.codec.num_codebooks = 8
    config.codec.quantizers = 8
    config.codec.codebook_size = 1024
    config.codec.n_filters = 64
    config.codec.strides = (8, 5, 4, 2)
    config.codec.dimension = 1024
    config.codec.semantic_dimension = 768
    config.codec.bidirectional = True
    config.codec.activation = "Snake"  # what AnyGPT uses; the first published model has "ELU"

    config.steps = 400_000
    config.batch_size = 6
    config.crop_frames = 150
    config.keep_in_memory = False
    config.mel_windows = ((1024, 240), (512, 120), (256, 60), (128, 30))
    config.adversary.networks = config_dict.ConfigDict(
        {"periods": (2, 3, 5, 7, 11), "scales": 3, "n_ffts": (1024, 2048, 512, 256, 128), "filters": 32}
    )
    config.teacher.field = "features"
    config.loss_weights = config_dict.ConfigDict(
        {
            "l1": 500.0,
            "mel_0": 45.0,
            "mel_1": 1.0,
            "mel_2": 1.0,
            "mel_3": 1.0,
            "level_commitment": 10.0,
            "distill": 120.0,
            "adversarial": 1.0,
            "feature": 2.0,
        }
    )
    config.quantize_from = 10
    config.pool = 8192
    config.kmeans_iterations = 50
    config.ema_decay = 0.99
    config.restart_below = 0.03

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup = 0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.99
    config.optimizer.clip = float("inf")
    config.log_every = 10
    config.save_every = 2500

    if arg in ("small", "dummy"):
        small(config)
    if arg == "dummy":
        config.codec.update({"codebook_size": 32, "dimension": 8, "n_filters": 8, "strides": (20, 16)})
        config.codec.lstm_layers = 1
        config.codec.update({"num_codebooks": 2, "quantizers": 2})
        config.mel_windows = ((256, 80),)
        del config.loss_weights["mel_1"]
        config.adversary.networks.update({"periods": (2,), "n_ffts": (128,), "filters": 2, "shrink": 32})
        config.update({"steps": 30, "batch_size": 4, "crop_frames": 6, "pool": 128, "quantize_from": 6})
        config.update({"log_every": 5, "save_every": 10, "kmeans_iterations": 5})
        config.optimizer.learning_rate = 3e-3
    elif arg not in ("", "small"):
        raise ValueError(f"arguments are '', 'small' and 'dummy', not {arg!r}")
    return config


def small(config: config_dict.ConfigDict) -> None:
    """A narrow model with a teacher that needs no weights."""
    config.keep_in_memory = True
    config.teacher.field = ""
    config.teacher.function = "anygpt_tokenizers.teachers:cepstra"
    config.codec.update({"n_filters": 8, "dimension": 64, "codebook_size": 256, "semantic_dimension": 39})
    config.codec.update({"num_codebooks": 4, "quantizers": 4, "storage_dtype": "float16"})
    config.mel_windows = ((1024, 240), (512, 120))
    for name in ("mel_2", "mel_3"):
        del config.loss_weights[name]
    config.adversary.networks.update(
        {"periods": (2, 5), "scales": 1, "n_ffts": (512,), "filters": 4, "shrink": 16}
    )
    config.update({"steps": 2000, "batch_size": 6, "crop_frames": 25, "pool": 2048, "quantize_from": 200})
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 50
    config.save_every = 250
