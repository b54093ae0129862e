"""The SEED-2 image tokenizer from scratch, in its two stages (Ge et al. 2023 and the code they released).

    --config=configs/tokenizers/seed.py:stage1 --config.init_from=CODEC     pictures against captions
    --config=configs/tokenizers/seed.py:stage2 --config.init_from=STAGE1    codes; the result is a codec

"stage1" and "stage2" have the published sizes and hyper-parameters. Lengths of epochs are inferred from
CC3M's 3.3 million pairs and the published batches of 64 GPUs. Where this differs from the original:
- Stage 1 starts from the parts `init_parts` of a codec that `import-seed` wrote, not from BLIP-2's stage 1;
  text is bytes, or pieces of a SentencePiece model, not BERT's word pieces; there is no dropout.
- Warm-up goes on past the first epoch, if that is shorter.
- Stage 2 reads CLIP's embeddings of whole pictures from files, so it neither crops nor mirrors; with a
  teacher as a function set crop_scale=(0.5, 1.0) and flip=True as in the original.
"""

from ml_collections import config_dict

EPOCH = 3_318_333  # pairs


def get_config(arg: str = "") -> config_dict.ConfigDict:
    """`arg`: "stage1" or "stage2", with "-small" for the small world on one CPU, "-dummy" for tests.

    Fields beside those of every codec:
    - init_from: a directory of stage 1 or of a SEED codec. init_parts: what of it is taken, names of parts of
      SeedNet's parameters; stage 2 always takes vision tower and Q-Former.
    - freeze_vision: whether stage 1 keeps the vision tower. The small world has no trained one, and a random
      one tells too little, so there stage 1 trains it too.
    - text: model, a SentencePiece file or empty for bytes; max_tokens, the first token included;
      contrast_dim, of the vectors that are compared.
    - equal_captions_match: whether pictures with the same caption count as right for each other; in the small
      world half a batch would be wrong otherwise.
    - teacher: `field`, the manifest's name of .npy files [embed_dim], or `function`, "module:function" that
      computes embeddings [B, embed_dim] from pictures uint8 [B, S, S, 3].
    - beta: weight of the codebook's part in the loss of quantisation; the latents' has 1.
    - restart_after: steps without use after which a code is moved onto a latent of the batch; 0 for never.
    - usage_decay: of the moving shares that entropy and dead codes are computed from.
    - crop_scale: range of the share of a picture's area that is seen. flip: whether half are mirrored.
    - evaluate_pictures: how many held-out ones, at most.
    """
    stage, _, size = arg.partition("-")
    if stage not in ("stage1", "stage2") or size not in ("", "small", "dummy"):
        raise ValueError('arguments are "stage1" and "stage2", also with "-small" or "-dummy"')
    config = published()
    if stage == "stage1":
        config.kind = "seed_stage1"
        _published_stage1(config)
    else:
        config.kind = "seed_stage2"
        _published_stage2(config)
    if size:
        _small(config, stage)
    if size == "dummy":
        _dummy(config)
    return config


def published() -> config_dict.ConfigDict:
    """What both stages share: sizes as in `seed_net.SeedSpec`, and AdamW."""
    config = config_dict.ConfigDict()
    config.seed = 42
    config.init_from = ""
    config.init_parts = ("vision", "vision_norm", "qformer")
    config.codec = config_dict.ConfigDict()
    config.codec.modality = "image"
    config.codec.dtype = "float32"
    config.codec.storage_dtype = "float32"
    config.codec.update({"image_size": 224, "patch_size": 14})
    config.codec.update({"vision_dim": 1408, "vision_layers": 39, "vision_heads": 16, "vision_hidden": 6144})
    config.codec.update({"num_queries": 32, "qformer_dim": 768, "qformer_layers": 12})
    config.codec.update({"qformer_heads": 12, "qformer_hidden": 3072})
    config.codec.update({"codebook_size": 8192, "code_dim": 32})
    config.codec.update({"head_layers": 4, "head_heads": 12, "head_hidden": 3072})
    config.codec.update({"down_dims": (256, 128, 32), "reverse_layers": 0, "embed_dim": 1024})

    config.keep_in_memory = False
    config.evaluate_pictures = 1000
    config.optimizer = config_dict.ConfigDict()
    config.optimizer.warmup = 2000
    config.optimizer.weight_decay = 0.05
    config.optimizer.undecayed = ("bias", "scale")
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.clip = float("inf")
    config.log_every = 50
    config.save_every = 1000
    return config


def _published_stage1(config: config_dict.ConfigDict) -> None:
    config.batch_size = 64 * 64
    config.optimizer.epoch_steps = EPOCH // config.batch_size
    config.steps = 10 * config.optimizer.epoch_steps
    config.optimizer.update({"learning_rate": 3e-5, "start": 3e-7, "end": 3e-6})
    config.freeze_vision = True
    config.text = config_dict.ConfigDict({"model": "", "max_tokens": 128, "contrast_dim": 256})
    config.equal_captions_match = False
    config.label_smoothing = 0.1
    config.crop_scale = (0.5, 1.0)
    config.flip = True


def _published_stage2(config: config_dict.ConfigDict) -> None:
    config.batch_size = 256 * 64
    config.optimizer.epoch_steps = EPOCH // config.batch_size
    config.steps = 500 * config.optimizer.epoch_steps
    config.optimizer.update({"learning_rate": 1e-4, "start": 1e-6, "end": 1e-5})
    config.teacher = config_dict.ConfigDict({"field": "clip_embedding", "function": ""})
    config.loss_weights = config_dict.ConfigDict({"vq": 5.0, "reconstruction": 2.0, "distill": 0.5})
    config.beta = 0.25
    config.restart_after = 0
    config.usage_decay = 0.99
    config.crop_scale = (1.0, 1.0)
    config.flip = False


def _small(config: config_dict.ConfigDict, stage: str) -> None:
    """A narrow model of pictures of 64 × 64 pixels; captions tell left from right, so nothing is mirrored."""
    config.codec.update({"image_size": 64, "patch_size": 8})
    config.codec.update({"vision_dim": 96, "vision_layers": 3, "vision_heads": 4, "vision_hidden": 192})
    config.codec.update({"qformer_dim": 96, "qformer_layers": 4, "qformer_heads": 4, "qformer_hidden": 192})
    config.codec.update({"codebook_size": 512, "code_dim": 16})
    config.codec.update({"head_layers": 2, "head_heads": 4, "head_hidden": 192})
    config.codec.update({"down_dims": (48, 24, 8), "embed_dim": 192})
    config.update({"keep_in_memory": True, "batch_size": 32, "crop_scale": (1.0, 1.0), "flip": False})
    config.optimizer.update({"epoch_steps": 0, "start": 0.0, "end": 1e-5, "warmup": 100, "clip": 1.0})
    config.save_every = 500
    if stage == "stage1":
        config.update({"freeze_vision": False, "equal_captions_match": True, "steps": 3000})
        config.text.update({"max_tokens": 64, "contrast_dim": 64})
        config.optimizer.learning_rate = 5e-4
    else:
        config.steps = 2000
        config.restart_after = 50
        config.teacher.update({"field": "", "function": "anygpt_tokenizers.teachers:thumbnail"})
        config.optimizer.learning_rate = 1e-3


def _dummy(config: config_dict.ConfigDict) -> None:
    config.codec.update({"image_size": 32, "vision_dim": 16, "vision_layers": 1, "vision_hidden": 32})
    config.codec.update({"vision_heads": 2, "qformer_dim": 16, "qformer_layers": 2, "qformer_heads": 2})
    config.codec.update({"qformer_hidden": 32, "codebook_size": 64, "code_dim": 4})
    config.codec.update({"head_layers": 1, "head_heads": 2, "head_hidden": 32, "down_dims": (8, 8, 4)})
    config.update({"steps": 40, "batch_size": 16, "log_every": 5, "save_every": 20})
    config.optimizer.update({"learning_rate": 3e-3, "warmup": 5})
    if "text" in config:
        config.text.update({"max_tokens": 16, "contrast_dim": 16})
    else:
        config.restart_after = 5
        config.usage_decay = 0.9
