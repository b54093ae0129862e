"""Settings that configs of training start from."""

from ml_collections import config_dict


def audio() -> config_dict.ConfigDict:
    """Every setting of `AudioTraining`, each at the value that adds nothing; configs set what they need.

    Not set here are those that every config must choose: codec, steps, batch_size, crop_frames, loss_weights,
    quantize_from, pool, ema_decay, restart_below and the optimizer's.

    - codec: the codec's config.json. steps, batch_size; crop_frames: frames of a training example.
    - speed_range, gain_range: each example is played at a random speed and loudness between these.
    - keep_in_memory: read all files at the start, or each when its turn comes. Those that can't be used are
      left out either way.
    - loss_weights: which terms the loss has. "commitment" (latents to quantised latents), "level_commitment"
      (the same for every level, averaged; see `AudioTraining.loss`), "distill" (see teacher), "l1"
      (waveform), those of `audio_losses.multi_resolution_losses` for `stft_sizes` or of the spectral head,
      "mel_0", "mel_1", … for `mel_windows`, "mel_scales" for `mel_scales`, "adversarial" and "feature" (see
      adversary).
    - mel_bands: of all mel terms. mel_windows: pairs of window and hop. mel_scales: windows.
    - balance: decay of EnCodec's balancer, or 0 for none.
    - adversary: see `audio_adversary.Adversary`; no discriminators where `networks` is empty.
    - teacher: `field`, the manifest's name of the .npy files of features, or `function`, "module:function"
      that computes them from (wave, rate); not both. They come as often as the codec's frames.
    - quantize_from: step at which the latents begin to be quantised. pool: recent latents kept for it.
    - kmeans_iterations, ema_decay, restart_below: see `residual_vq`.
    - quantizer_dropout: numbers of levels of which each step takes one; empty for always all.
    - evaluate_clips: how many held-out ones, at most.
    """
    config = config_dict.ConfigDict()
    config.kind = "audio"
    config.seed = 0
    config.codec = config_dict.ConfigDict()
    config.speed_range = (1.0, 1.0)
    config.gain_range = (1.0, 1.0)
    config.keep_in_memory = True
    config.mel_bands = 80
    config.stft_sizes = ()
    config.mel_windows = ()
    config.mel_scales = ()
    config.balance = 0.0
    config.adversary = config_dict.ConfigDict({"networks": {}, "kind": "least_squares", "every": 1})
    config.teacher = config_dict.ConfigDict({"field": "", "function": ""})
    config.kmeans_iterations = 10
    config.quantizer_dropout = ()
    config.evaluate_clips = 1000
    config.optimizer = config_dict.ConfigDict()
    config.log_every = 50
    config.save_every = 250
    return config


def small_audio() -> config_dict.ConfigDict:
    """What the small speech and music codecs have in common."""
    config = audio()
    config.codec.sample_rate = 16000
    config.codec.dimension = 64
    config.codec.front = "stft"
    config.codec.head = "istft"
    config.codec.decoder_filters = 192
    config.codec.residual_layers = 1
    config.codec.refinements = 16
    config.codec.storage_dtype = "float16"

    config.batch_size = 16
    config.gain_range = (0.6, 1.1)
    config.loss_weights = config_dict.ConfigDict(
        {"log": 1.0, "log_squared": 0.5, "mel": 1.0, "convergence": 1.0, "advance": 0.5, "commitment": 0.25}
    )
    config.pool = 8192
    config.ema_decay = 0.98
    config.restart_below = 0.03

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup = 30
    config.optimizer.weight_decay = 1e-4
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.clip = 1.0
    return config


def dummy_small_audio(config: config_dict.ConfigDict) -> None:
    """Makes a small codec's config one for tests."""
    config.codec.update({"codebook_size": 32, "dimension": 8, "encoder_filters": 8, "decoder_filters": 8})
    config.codec.refinements = 1
    config.update({"steps": 20, "batch_size": 4, "crop_frames": 8, "quantize_from": 5, "pool": 128})
    config.update({"log_every": 5, "save_every": 20})
    config.optimizer.warmup = 2
    config.optimizer.learning_rate = 1e-2


def vqgan() -> config_dict.ConfigDict:
    """Every setting of `VqganTraining`, each at the value that adds nothing; configs set what they need.

    Not set here are those that every config must choose: the net's sizes in codec, steps, batch_size and the
    optimizer's.

    - codec: the codec's config.json, see `vqgan.VqganNet`. quantizer: see `latent_quantizers.with_quantizer`.
      output: what the decoder gives, "pixels" or "logits", see `picture_losses`.
    - dtype: of products in training; codes are decided in float32 whatever it is.
    - loss_weights: "l2" of pixels from 0 to 1; "logit_laplace", see `picture_losses`; "codebook",
      "commitment" and "entropy", see `latent_quantizers`; "perceptual" and "adversarial"; each 0 for none.
      FSQ has no terms of the quantiser, so that their weights have no effect.
    - entropy_temperature: of that term's softmax.
    - perceptual_weights: the file that `perceptual.read_features` reads.
    - adversary: see `picture_adversary.PictureAdversary`.
    - restart_after: steps without use after which a code is moved onto a latent of the batch; 0 for never.
    - usage_decay: of the moving shares that perplexity and dead codes are computed from.
    - crop_scale: range of the share of a picture's area that is seen. flip: whether half are mirrored.
    - keep_in_memory: read all files at the start, or each when its turn comes.
    - evaluate_pictures: how many held-out ones, at most.
    """
    config = config_dict.ConfigDict()
    config.kind = "vqgan"
    config.seed = 0
    config.codec = config_dict.ConfigDict()
    config.codec.modality = "image"
    config.codec.output = "pixels"
    config.codec.storage_dtype = "float32"
    config.codec.quantizer = config_dict.ConfigDict({"kind": "fsq", "dim": 0, "levels": (8, 8, 8, 4, 4)})
    config.dtype = "float32"
    names = ("logit_laplace", "codebook", "commitment", "entropy", "perceptual", "adversarial")
    config.loss_weights = config_dict.ConfigDict({"l2": 1.0, **dict.fromkeys(names, 0.0)})
    config.entropy_temperature = 0.01
    config.perceptual_weights = ""
    config.adversary = config_dict.ConfigDict(
        {"multiplier": 1.0, "shrink": 1, "penalty": 10.0, "penalty_every": 1}
    )
    config.restart_after = 0
    config.usage_decay = 0.99
    config.crop_scale = (1.0, 1.0)
    config.flip = False
    config.keep_in_memory = False
    config.evaluate_pictures = 1000
    config.optimizer = config_dict.ConfigDict()
    config.optimizer.undecayed = ("bias", "scale", "codebook", "positions")
    config.optimizer.clip = float("inf")
    config.log_every = 50
    config.save_every = 1000
    return config


def small_world_vqgan(config: config_dict.ConfigDict) -> None:
    """Turns a published recipe into one for pictures of 64 × 64 pixels on one CPU: 64 codes of 512.

    No discriminator and no perceptual net, which cost more there than they bring; the codebook's terms and
    moving of idle codes stay.
    """
    config.codec.update({"image_size": 64, "codebook_size": 512})
    config.codec.quantizer.levels = (8, 8, 8)
    config.loss_weights.update({"perceptual": 0.0, "adversarial": 0.0})
    config.adversary.update({"shrink": 16, "penalty_every": 4})
    config.update({"keep_in_memory": True, "crop_scale": (1.0, 1.0), "flip": False})
    config.update({"steps": 2000, "batch_size": 16, "restart_after": 20, "save_every": 500})
    # MaskGIT's b1 of 0 is for the discriminator.
    config.optimizer.update({"learning_rate": 1e-3, "b1": 0.9, "warmup": 100, "end": 1e-4, "clip": 1.0})


def dummy_vqgan(config: config_dict.ConfigDict) -> None:
    """Makes a small world's recipe one for tests, with a small discriminator."""
    config.codec.update({"image_size": 16, "codebook_size": 32})
    config.codec.quantizer.update({"levels": (4, 4, 2), "dim": 4})
    config.loss_weights.adversarial = 0.1
    config.adversary.update({"shrink": 128, "penalty_every": 2})
    config.update({"steps": 8, "batch_size": 4, "restart_after": 5, "usage_decay": 0.9})
    config.update({"log_every": 2, "save_every": 4})
    config.optimizer.update({"learning_rate": 2e-3, "warmup": 2})
