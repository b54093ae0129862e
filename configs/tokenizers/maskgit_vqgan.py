"""MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200) from scratch: 16 × 16 pixels to one code of 1024.

The published sizes and hyper-parameters; the training loop itself was never published. The perceptual net is
a VGG-16 of the user's (see `anygpt_tokenizers.perceptual`), where the authors had a ResNet:

    --config=configs/tokenizers/maskgit_vqgan.py:256 --config.perceptual_weights=vgg16.safetensors
"""

from anygpt_tokenizers import recipes
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "256" (by default) or "512" pixels, the published ones; "tiny" for the small world on one CPU;
    "dummy" for tests. With "-fsq" the codes are FSQ's: 1000 instead of 1024, of "tiny" as many."""
    size, _, quantizer = (arg or "256").partition("-")
    if size not in ("256", "512", "tiny", "dummy") or quantizer not in ("", "fsq"):
        raise ValueError(f'arguments are "256", "512", "tiny", "dummy", also with "-fsq", not {arg!r}')
    config = recipes.vqgan()
    config.codec.net = "maskgit"
    config.codec.image_size = 512 if size == "512" else 256
    config.codec.codebook_size = 1024
    config.codec.quantizer.update({"kind": "plain", "dim": 256, "levels": (8, 5, 5, 5)})
    config.codec.filters = 128
    config.codec.multipliers = (1, 1, 2, 2, 4)
    config.codec.res_blocks = 2
    config.codec.groups = 32
    config.loss_weights.update({"codebook": 1.0, "commitment": 0.25, "entropy": 0.1})
    config.loss_weights.update({"perceptual": 0.1, "adversarial": 0.1})

    config.steps = 1_000_000
    config.batch_size = 256
    config.crop_scale = (0.8, 1.0)
    config.flip = True
    config.optimizer.update({"learning_rate": 1e-4, "end": 1e-4, "warmup": 0})
    config.optimizer.update({"b1": 0.0, "b2": 0.99, "weight_decay": 0.0})

    if size in ("tiny", "dummy"):
        recipes.small_world_vqgan(config)
        config.codec.update({"filters": 32, "multipliers": (1, 1, 2, 4), "res_blocks": 1, "groups": 8})
        config.codec.quantizer.dim = 32
    if size == "dummy":
        recipes.dummy_vqgan(config)
        config.codec.update({"filters": 4, "multipliers": (1, 2), "groups": 2})
    if quantizer == "fsq":
        config.codec.quantizer.kind = "fsq"
    return config
