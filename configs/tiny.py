"""The small world on two cores.

configs/tiny.py         the quickstart's: minutes
configs/tiny.py:long    the shipped model's: more of the world, three and a half times the tokens
configs/tiny.py:dummy   for tests: seconds, learns nothing worth having
"""

from ml_collections import config_dict

from anygpt_jax.training import defaults


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """`argument`: "" (quickstart), "long" or "dummy"."""
    config = defaults.get_config()
    # How much of the small world anygpt_jax.quickstart makes to learn from, and on how many held-out items
    # it judges each direction.
    config.world = {"images": 20_000, "speech": 4000, "music": 3000, "seed": 0}
    config.evaluation = {"n": 100, "seed": 0}
    config.model.preset = "tiny"
    config.steps = 1700
    config.log_every = 50
    config.checkpoint.every = 400
    config.data.batch_size = 4
    # Rows of each medium. Measured: pictures are the slowest to learn, and the cheapest to make more of.
    config.data.mixture = {"image": 0.65, "speech": 0.2, "music": 0.15}
    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.muon_learning_rate = 4e-4
    config.optimizer.final = 0.02
    # Answers are what is judged; prompts are the same media again, worth a little as practice.
    config.prompt_loss_weight = 0.2
    # A sentence has a tenth of the tokens of its sound; a caption has a quarter of its picture's.
    config.loss_weights = {"text": 4.0, "image": 1.0, "speech": 1.0, "music": 1.0}
    config.direction_weights = {"image->text": 1.5}

    if argument == "long":
        config.world = {"images": 40_000, "speech": 8000, "music": 4000, "seed": 1}
        config.steps = 3000
        config.log_every = 100
        config.checkpoint.every = 500
        config.data.batch_size = 8
        config.optimizer.learning_rate = 5e-3
        config.optimizer.muon_learning_rate = 5e-4
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
