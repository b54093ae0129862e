"""The small world on two cores.

configs/tiny.py         the quickstart's: minutes
configs/tiny.py:long    the shipped model's: more of the world, twice the steps
configs/tiny.py:dummy   for tests: seconds, learns nothing worth having
"""

from ml_collections import config_dict

from anygpt_jax.training import defaults


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """`argument`: "" (quickstart), "long" or "dummy"."""
    config = defaults.get_config()
    # How much of the small world anygpt_jax.quickstart makes to learn from, and on how many held-out items
    # it judges each direction.
    config.world = {"images": 4000, "speech": 4000, "music": 3000, "seed": 0}
    config.evaluation = {"n": 100, "seed": 0}
    config.model.preset = "tiny"
    config.steps = 700
    config.log_every = 20
    config.checkpoint.every = 200
    config.data.batch_size = 8
    # Rows of each medium. Measured: pictures are the slowest to learn (pairs of shapes, digits).
    config.data.mixture = {"image": 0.5, "speech": 0.3, "music": 0.2}
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 5e-3
    config.optimizer.muon_learning_rate = 5e-4
    config.optimizer.final = 0.02
    # Answers are what is judged; prompts are the same media again, worth a little as practice.
    config.prompt_loss_weight = 0.2
    # A sentence has a tenth of the tokens of its sound.
    config.loss_weights = {"text": 4.0, "image": 1.0, "speech": 1.0, "music": 1.0}

    if argument == "long":
        config.world = {"images": 8000, "speech": 8000, "music": 4000, "seed": 1}
        config.steps = 1400
        config.log_every = 25
        config.checkpoint.every = 250
    elif argument == "dummy":
        config.model.preset = "dummy"
        config.steps = 20
        config.log_every = 5
        config.checkpoint.every = 10
        config.data.batch_size = 8
        config.world = {"images": 20, "speech": 20, "music": 20, "seed": 0}
        config.evaluation.n = 2
    elif argument:
        raise ValueError("choose nothing, 'long' or 'dummy'")
    return config
