"""The paper's pre-training of AnyGPT from LLaMA-2-7B (arXiv 2402.12226, tables 7 and 8).

configs/pretrain.py         81,000 steps of 512 rows, for 64 chips (the paper: 480, no multiple of 64)
configs/pretrain.py:stage2  4,000 more on selected data
configs/pretrain.py:v5e-64  the first on a TPU slice, or on GPUs; the sizes that fit are in SLICES
"""

from ml_collections import config_dict

from anygpt_jax.sharding import TWO_STEP_RULES
from anygpt_jax.training import defaults

# Table 7: sampling rates of the groups; names of the packed data sets.
MIXTURE = {
    "mmc4": 0.05,
    "image": 0.30,  # LAION-2B, LAION-COCO, LAION-Aesthetics, JourneyDB
    "mls": 0.13,
    "speech": 0.27,  # Common Voice, GigaSpeech
    "music": 0.25,  # YouTube-Music-1M, MusicGen-Synthesis
}

# What changes on a slice or on GPUs. One row of 4,096 tokens per device where there is not more memory; the
# parameters divided over all devices. Predictions and how they were checked: docs/performance.md.
_ROWS_OF_4096 = {"pack.seq_len": 4096, "mesh.data": 1, "optimizer.accumulation": 1}
_BIG_TILES = {"scoped_vmem_kib": 65_536}  # half of a v5e's or v6e's vector memory for one fusion
_LINES_AND_PLANES = {"mesh.data": 4, "mesh.fsdp": 16, "rules": TWO_STEP_RULES}
SLICES = {
    "v4-128": {"data.batch_size": 64, "model.remat_policy": "minimal", **_LINES_AND_PLANES},
    "v5e-64": {"data.batch_size": 64, "mesh.fsdp": 64, "model.remat_policy": "products", **_BIG_TILES},
    "v5e-256": {"data.batch_size": 256, "mesh.fsdp": 256, "model.remat_policy": "products", **_BIG_TILES},
    "v5p-128": {
        "data.batch_size": 128,
        "model.remat_policy": "minimal",
        "scoped_vmem_kib": 32_768,
        **_LINES_AND_PLANES,
    },
    "v6e-64": {"data.batch_size": 64, "mesh.fsdp": 64, "model.remat_policy": "save_qkv", **_BIG_TILES},
    "8xh100": {"data.batch_size": 32, "mesh.fsdp": 8, "model.remat_policy": "minimal"},
    "h200": {"data.batch_size": 2, "mesh.fsdp": 1, "model.remat_policy": "projections"},
}
SLICES = {name: {**_ROWS_OF_4096, **values} for name, values in SLICES.items()}
# As compile_check names the TPU slices; a v4 or v5p name counts cores, two a chip.
TOPOLOGIES = {
    "v4-128": "v4:4x4x4",
    "v5e-64": "v5e:8x8",
    "v5e-256": "v5e:16x16",
    "v5p-128": "v5:4x4x4",
    "v6e-64": "v6e:8x8",
    "8xh100": "h100:8",
    "h200": "h200:1",
}


def get_config(argument: str = "") -> config_dict.ConfigDict:
    """`argument`: "", "stage2" or a name of SLICES."""
    config = defaults.get_config()
    # The published layout without the chat model's four rows. LLaMA's tokenizer.model is the user's to give:
    # --config.vocabulary.text_model=PATH. Its codes come from the published codecs, already tokenised.
    config.vocabulary.published = "base"
    config.vocabulary.text_model = ""
    config.codecs = {}
    config.pack.seq_len = 4608  # the paper's rows have 4,500 tokens; a multiple of 512 tiles well
    config.model.preset = "llama2-7b"
    config.steps = 81_000
    config.log_every = 10
    # Temporary ones by the clock, so that a preemption costs minutes; each 5,000th step stays for good.
    config.checkpoint.update({"every": 1000, "minutes": 15.0, "keep_every": 5000})
    config.data.batch_size = 512
    config.optimizer.accumulation = 8  # on 64 chips, one row at a time on each
    config.data.mixture = MIXTURE

    # Table 8. The paper says Adam; the code's AdamW has no weight decay, so they are the same.
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 6e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = 0.03
    config.optimizer.final = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.b1, config.optimizer.b2 = 0.9, 0.999
    config.optimizer.clip = 1.0

    config.mesh = {"data": -1, "fsdp": 32, "tensor": 1, "slices": 1}
    if argument == "stage2":
        config.steps = 4_000
    elif argument in SLICES:
        config.update_from_flattened_dict(SLICES[argument])
    elif argument:
        raise ValueError(f"choose nothing, 'stage2' or one of {', '.join(SLICES)}")
    return config
