"""The unCLIP decoder against diffusers 0.42.1 on random weights, by way of its files (extra `parity`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import diffusion_schedules as schedules
from anygpt_tokenizers import unclip
from anygpt_tokenizers.clip_text import ClipText
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.unclip_importer import import_unclip
from anygpt_tokenizers.unclip_unet import UNet
from anygpt_tokenizers.unclip_vae import VaeDecoder
from flax import traverse_util

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def oracles():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    module = pytest.importorskip("unclip_oracles")
    if module.diffusers() is None:
        pytest.skip("the package diffusers isn't installed")
    return module


@pytest.fixture(scope="module")
def both(oracles, tmp_path_factory):
    """diffusers' pipeline with four levels, and what the importer makes of what it writes."""
    folder = tmp_path_factory.mktemp("unclip")
    pipeline = oracles.random_pipeline()
    oracles.save(pipeline, folder / "source")
    import_unclip(folder / "source", folder / "decoder")
    return pipeline, unclip.UnclipDecoder.from_pretrained(folder / "decoder"), folder


def test_one_evaluation_of_the_unet_is_diffusers(oracles, both):
    import torch

    pipeline, decoder, _ = both
    _, latents, _ = oracles.random_inputs(pipeline, 3)
    times, label, text = torch.tensor([951, 1, 500]), torch.randn(3, 40), torch.randn(3, 16, 24)
    with torch.no_grad():
        expected = pipeline.unet(latents, times, encoder_hidden_states=text, class_labels=label).sample
    arrays = oracles.channels_last(latents), times.numpy(), text.numpy(), label.numpy()
    result = UNet(decoder.spec.unet).apply({"params": decoder.params["unet"]}, *arrays)
    assert expected.std() > 0.3
    np.testing.assert_allclose(result, oracles.channels_last(expected), atol=1e-5)


def test_the_autoencoders_decoder_is_diffusers(oracles, both):
    import torch

    pipeline, decoder, _ = both
    _, latents, _ = oracles.random_inputs(pipeline, 3)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    arrays = oracles.channels_last(latents)
    result = VaeDecoder(decoder.spec.vae).apply({"params": decoder.params["vae"]}, arrays)
    assert expected.std() > 0.3
    np.testing.assert_allclose(result, oracles.channels_last(expected), atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_text_encoder_is_transformers(oracles, both, activation, tmp_path, monkeypatch):
    import torch

    pipeline, _, folder = both
    if activation != "gelu":
        monkeypatch.setattr(pipeline, "text_encoder", oracles.random_text(hidden_act=activation))
        oracles.save(pipeline, tmp_path / "source", safe=False)
        import_unclip(tmp_path / "source", tmp_path / "decoder")
        folder = tmp_path
    _, spec, weights = unclip.open_directory(folder / "decoder")
    names = [name for name in weights if name.startswith("text/")]
    params = traverse_util.unflatten_dict({name: weights[name] for name in names}, sep="/")["text"]
    tokens = torch.randint(0, 57, (2, 11))
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens)[0].numpy()
    assert expected.std() > 0.3 and spec.text.activation == activation
    result = ClipText(spec.text).apply({"params": params}, tokens.numpy())
    np.testing.assert_allclose(result, expected, atol=1e-5)
    empty = map_arrays(folder / "decoder" / "weights.safetensors")["empty_prompt"]
    np.testing.assert_allclose(empty, oracles.empty_prompt(pipeline)[0], atol=1e-5)


@pytest.mark.parametrize("name", ["plms", "ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 14, 15, 20, 50, 333])
def test_the_trajectory_of_a_schedule_is_diffusers_at_every_step(oracles, name, steps):
    import torch

    scheduler = oracles.schedulers()[name]
    scheduler.set_timesteps(steps)
    table = schedules.make_table(name, schedules.NoiseSpec(), steps)
    assert table.time.tolist() == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x, mixing = torch.randn(2, 5, generator=generator), torch.randn(5, 5, generator=generator)
    state = schedules.start(jnp.asarray(x.numpy()))
    advance = jax.jit(schedules.advance)
    for index, time in enumerate(scheduler.timesteps):
        x_before, ours_before = x, state.latents
        x = scheduler.step(torch.tanh(x_before @ mixing) * (1 + time / 1000), time, x_before).prev_sample
        velocity = jnp.tanh(ours_before @ mixing.numpy()) * (1 + table.time[index] / 1000)
        state = advance(state, schedules.Table(*(part[index] for part in table)), velocity)
        np.testing.assert_allclose(state.latents, x, atol=1e-5)
    assert x.std() > 0.3


def test_the_noise_tables_are_diffusers(oracles):
    library = oracles.diffusers()
    for fields in ({"beta_schedule": "squaredcos_cap_v2"}, oracles.PUBLISHED_NOISE, {}):
        scheduler = library.DDIMScheduler(**fields)
        config = scheduler.config
        spec = schedules.NoiseSpec(1000, config.beta_schedule, config.beta_start, config.beta_end)
        np.testing.assert_allclose(schedules.signal(spec), scheduler.alphas_cumprod, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["plms", "dpm++"])
def test_the_whole_pipeline_with_guidance_is_diffusers(oracles, both, name):
    pipeline, decoder, _ = both
    embeddings, latents, noise = oracles.random_inputs(pipeline, 2)
    expected = oracles.run(pipeline, embeddings, latents, noise, oracles.schedulers()[name])
    inputs = embeddings.numpy(), noise.numpy(), None, None, oracles.channels_last(latents), None
    table = schedules.make_table(name, decoder.spec.noise, 20)
    program = jax.jit(functools.partial(unclip.denoise, decoder.spec, jnp.float32))
    result = program(decoder.params, unclip.Inputs(*inputs), table, np.float32(10), np.int32(0))
    assert expected.latents.std() > 0.5 and expected.colours.std() > 0.3
    np.testing.assert_allclose(result, oracles.channels_last(expected.latents), atol=1e-4)
    colours = VaeDecoder(decoder.spec.vae).apply({"params": decoder.params["vae"]}, result)
    np.testing.assert_allclose(colours, oracles.channels_last(expected.colours), atol=1e-4)


def test_negative_embeddings_are_noised_as_anygpts_pipeline_does(oracles, both):
    pipeline, decoder, _ = both
    embeddings, latents, noise = oracles.random_inputs(pipeline, 2)
    negatives, _, other_noise = oracles.random_inputs(pipeline, 2, seed=1)
    # The bound is for 20 steps: after 4, one ulp in the start already moves diffusers' own end by 8e-5.
    options = {"steps": 20, "level": 300, "away": (negatives, other_noise)}
    expected = oracles.run(pipeline, embeddings, latents, noise, oracles.schedulers()["plms"], **options)
    arrays = [part.numpy() for part in (embeddings, noise, negatives, other_noise)]
    inputs = unclip.Inputs(*arrays, oracles.channels_last(latents), None)
    table = schedules.make_table("plms", decoder.spec.noise, 20)
    program = jax.jit(functools.partial(unclip.denoise, decoder.spec, jnp.float32))
    result = program(decoder.params, inputs, table, np.float32(10), np.int32(300))
    assert expected.latents.std() > 0.5
    np.testing.assert_allclose(result, oracles.channels_last(expected.latents), atol=1e-4)
