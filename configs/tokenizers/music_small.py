"""The small music codec: 16 kHz, 25 frames/s, two codebooks of 512 codes (450 bit/s)."""

from anygpt_tokenizers import recipes
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the shipped codec, "dummy" for tests."""
    config = recipes.small_audio()
    config.codec.modality = "music"
    config.codec.num_codebooks = 2
    config.codec.codebook_size = 512
    config.codec.n_fft = 1280
    config.codec.stft_hop = 320
    config.codec.encoder_filters = 96
    config.codec.encoder_strides = (2,)
    config.codec.decoder_strides = (2,)
    config.codec.floor = 1e-3

    config.steps = 5000
    config.crop_frames = 32
    config.quantize_from = 800

    if arg == "dummy":
        recipes.dummy_small_audio(config)
    elif arg:
        raise ValueError(f"arguments are '' and 'dummy', not {arg!r}")
    return config
