"""The small image tokenizer: 64 × 64 RGB, 4 × 4 patches, two codes of 512 a patch: 32 codes an image."""

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
    config.codec.form_dim = 24
    config.codec.hidden_dim = 256  # of the form encoder
    config.codec.edge_weight = 1.5  # of the edges' directions beside the principal components
    config.codec.dim = 128
    config.codec.num_layers = 3
    config.codec.num_heads = 4
    config.codec.channels = 32
    config.codec.storage_dtype = "float16"

    config.fit_images = 6000
    config.fit_iterations = 30
    # Tints are relative light in three channels; the noise of ink stays below this.
    config.tint_distance = 0.25

    config.steps = 6000
    config.batch_size = 32
    config.augment = 0.2
    config.move = 8
    # Latents and codes have length 1, so their squared distances are small.
    config.loss_weights = config_dict.ConfigDict({"l2": 1.0, "l1": 0.3, "gradient": 0.3, "quantizer": 25.0})

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
        config.codec.update(
            {"codebook_size": 16, "form_dim": 8, "hidden_dim": 8, "dim": 16, "num_layers": 1, "channels": 4}
        )
        config.update({"fit_images": 64, "fit_iterations": 2})
        config.update({"steps": 4, "batch_size": 4, "log_every": 2, "save_every": 2})
    elif arg:
        raise ValueError("the only argument is 'dummy'")
    return config
