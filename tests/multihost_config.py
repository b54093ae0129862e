"""The defaults over one data set, for test_multihost.py."""

from anygpt_jax.training import defaults


def get_config(_=""):
    config = defaults.get_config()
    config.data.mixture = {"a": 1.0}
    config.pack.seq_len = 32
    return config
