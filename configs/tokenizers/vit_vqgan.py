"""ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627) from scratch: 256 × 256 RGB to 1024 codes of 8192.

The published sizes and hyper-parameters. The perceptual net's weights are the user's, see
`anygpt_tokenizers.perceptual`:

    --config=configs/tokenizers/vit_vqgan.py:base --config.perceptual_weights=vgg16.safetensors

What the paper leaves open: R1's penalty is MaskGIT's, the picture is the location of the logit-Laplace
distribution (see `anygpt_tokenizers.picture_losses`), the quantiser's distances are means over dimensions,
and pictures are cropped to at least 0.8 of their area.
"""

from anygpt_tokenizers import recipes
from ml_collections import config_dict

SIZES = {
    "small": {"num_layers": 8, "dim": 512, "num_heads": 8, "hidden_dim": 2048},
    "base": {"num_layers": 12, "dim": 768, "num_heads": 12, "hidden_dim": 3072},
    "large": {"num_layers": 32, "dim": 1280, "num_heads": 16, "hidden_dim": 5120},
    "tiny": {"num_layers": 3, "dim": 128, "num_heads": 4, "hidden_dim": 512},
    "dummy": {"num_layers": 1, "dim": 16, "num_heads": 2, "hidden_dim": 32},
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "small", "base" (by default) or "large", the published sizes of encoder and decoder alike;
    "tiny" for the small world on one CPU; "dummy" for tests. With "-fsq" the codes are FSQ's, as many."""
    size, _, quantizer = (arg or "base").partition("-")
    if size not in SIZES or quantizer not in ("", "fsq"):
        raise ValueError(f'arguments are {", ".join(SIZES)}, also with "-fsq", not {arg!r}')
    config = recipes.vqgan()
    config.codec.net = "vit"
    config.codec.image_size = 256
    config.codec.patch_size = 8
    config.codec.codebook_size = 8192
    config.codec.output = "logits"
    config.codec.quantizer.update({"kind": "normalised", "dim": 32})
    config.codec.encoder = config_dict.ConfigDict(SIZES[size])
    config.codec.decoder = config_dict.ConfigDict(SIZES[size])
    config.loss_weights.update({"logit_laplace": 0.1, "perceptual": 0.1, "adversarial": 0.1})
    config.loss_weights.update({"codebook": 1.0, "commitment": 0.25})

    config.steps = 500_000
    config.batch_size = 256
    config.crop_scale = (0.8, 1.0)
    config.flip = True
    config.optimizer.update({"learning_rate": 1e-4, "end": 5e-5, "warmup": 50_000})
    config.optimizer.update({"b1": 0.9, "b2": 0.99, "weight_decay": 1e-4})

    if size in ("tiny", "dummy"):
        recipes.small_world_vqgan(config)
    if size == "tiny":
        # On flat surfaces its gradients drown the squared error's: 18 instead of 21 dB after 350 steps.
        config.loss_weights.logit_laplace = 0.0
    if size == "dummy":
        recipes.dummy_vqgan(config)
        config.codec.patch_size = 4
    if quantizer == "fsq":
        config.codec.quantizer.kind = "fsq"
    return config
