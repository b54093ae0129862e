"""Every field of a config, with its default; a file in configs/ changes what it needs.

Those of tokenising and packing come from data.defaults: one config describes data and training.
"""

import dataclasses

from ml_collections import config_dict

from anygpt_jax.data import defaults as data_defaults
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.sharding import DEFAULT_RULES


def get_config() -> config_dict.ConfigDict:
    """The whole table. An unset (None) model field keeps the preset's value."""
    config = data_defaults.get_config()
    config.seed = 0
    config.steps = 1000
    config.log_every = 10  # steps; a row is also logged where an evaluation is due
    # A checkpoint each `every` steps and, with `minutes`, at the first logged step so long after another.
    # The newest `keep` stay, and for good those of steps that are multiples of `keep_every`, itself one of
    # `every` (0: of none).
    config.checkpoint = {"every": 500, "minutes": 0.0, "keep": 3, "keep_every": 0}
    # A working directory whose newest parameters a new run starts from: imported, grown, or another run's.
    # Empty: random ones.
    config.init_from = ""

    # Packed data (anygpt_jax.pack). A mixture names data sets and sampling weights; empty takes all by size.
    config.data = {"dir": "", "mixture": {}, "batch_size": 16, "prefetch": 4}
    # The loss on another packed directory every so many steps and at the end; 0 or an empty directory: never.
    config.eval = {"dir": "", "every": 0, "batches": 8}

    # vocab_size and num_real_rows always come from the data's vocabulary.
    fields = [f for f in dataclasses.fields(DecoderConfig) if f.name not in ("vocab_size", "num_real_rows")]
    config.model = {"preset": "tiny"}
    for field in fields:
        config.model[field.name] = config_dict.placeholder(field.type)

    config.optimizer = {
        # adamw, or muon: Muon for the matrices inside the layers, AdamW for tables and norms.
        "name": "adamw",
        "learning_rate": 1e-3,
        # Of Muon's matrices: an update's root mean square (AdamW's is about 0.2 – 0.4 of its rate).
        "muon_learning_rate": 1e-2,
        "schedule": "cosine",  # or linear
        "warmup": 0.03,  # a fraction of `steps`
        "final": 0.1,  # the last learning rate as a fraction of the peak
        "weight_decay": 0.0,
        "b1": 0.9,
        "b2": 0.95,
        "eps": 1e-8,
        "clip": 1.0,  # of the gradient's norm over all parameters; 0: none
        # Updates whose gradient norm is over this multiple of its running mean are left out; 0: none is.
        "skip_spikes": 0.0,
        # The same of the loss, whose spikes are lower.
        "skip_loss_spikes": 0.0,
        "accumulation": 1,
    }

    # A token's weight in the loss: of its target's modality × of its document's direction × of its role.
    config.loss_weights = {"text": 1.0, "image": 1.0, "speech": 1.0, "music": 1.0}
    config.direction_weights = {}
    config.prompt_loss_weight = 1.0
    config.z_loss = 1e-4

    # slices: TPU slices joined by the data center's network; they divide the data axis.
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1, "slices": 1}
    config.rules = DEFAULT_RULES
    # KiB of a TPU's vector memory that one fusion of the step may use; 0: the compiler's choice, 16 MiB. More
    # lets large products take better tiles (docs/performance.md), and compiling takes five times as long.
    config.scoped_vmem_kib = 0
    # FLOP/s of one device that MFU is measured against; unset: by device kind, and on a CPU a timed product.
    config.peak_flops = config_dict.placeholder(float)
    return config
