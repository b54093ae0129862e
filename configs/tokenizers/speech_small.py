"""The small speech codec: 16 kHz, 25 frames/s, one codebook of 1024 codes (250 bit/s)."""

from anygpt_tokenizers import recipes
from ml_collections import config_dict


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "" for the shipped codec, "dummy" for tests."""
    config = recipes.small_audio()
    config.codec.modality = "speech"
    config.codec.num_codebooks = 1
    config.codec.codebook_size = 1024
    config.codec.n_fft = 640
    config.codec.stft_hop = 160
    config.codec.encoder_filters = 128
    config.codec.encoder_strides = (4,)
    config.codec.decoder_strides = (4,)
    config.codec.floor = 2e-4

    config.steps = 4000
    config.crop_frames = 25
    config.speed_range = (0.88, 1.14)
    config.stft_sizes = (256, 512, 1024)  # if the head is "waveform"
    config.quantize_from = 600

    if arg == "dummy":
        recipes.dummy_small_audio(config)
    elif arg:
        raise ValueError(f"arguments are '' and 'dummy', not {arg!r}")
    return config
