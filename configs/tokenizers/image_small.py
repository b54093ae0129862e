"""The small image tokenizer: 64 × 64 RGB, a grid of 4 × 4 patches, two codes of 512 a patch (288 bits an image)."""

from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the shipped codec, "dummy" for tests."""
    config = config_dict.ConfigDict()
    config.kind = "image"
    config.seed = 0

    config.codec = config_dict.ConfigDict()
    config.codec.modality = "image"
    config.codec.image_size = 64
    config.codec.patch_size = 16
    config.codec.num_codebooks = 2
    config.codec.codebook_size = 512
    config.codec.quantizer = "fsq"  # or "vq"
    config.codec.levels = (8, 8, 8)  # of "fsq"
    config.codec.part_dim = 8  # of "vq"
    config.codec.encoder_dim = 192
    config.codec.encoder_layers = 2
    config.codec.encoder_mixes = False
    config.codec.decoder_dim = 192
    config.codec.decoder_layers = 3
    config.codec.num_heads = 4
    config.codec.refine_channels = 48
    config.codec.storage_dtype = "float16"

    config.steps = 2000
    config.batch_size = 64
    config.augment = 0.5
    config.move = 8
    config.detail_dropout = 0.0
    config.loss_weights = config_dict.ConfigDict({"l2": 1.0, "l1": 0.3, "gradient": 0.3, "quantizer": 1.0})

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 100
    config.optimizer.weight_decay = 1e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.clip = 1.0
    config.log_every = 50
    config.save_every = 500

    if arg == "dummy":
        config.codec.update({"encoder_dim": 16, "decoder_dim": 16, "encoder_layers": 1, "decoder_layers": 1})
        config.codec.update({"num_heads": 2, "refine_channels": 8})
        config.update({"steps": 4, "batch_size": 4, "log_every": 2, "save_every": 2})
    elif arg:
        raise ValueError("the only argument is 'dummy'")
    return config
