"""The unCLIP decoder computes what diffusers' pipeline was recorded to compute; batches, meshes, mistakes."""

import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anygpt_tokenizers import diffusion_schedules as schedules
from anygpt_tokenizers import unclip
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.unclip_spec import EMBEDDING_NOISE
from anygpt_tokenizers.unclip_unet import UNet
from anygpt_tokenizers.unclip_vae import VaeDecoder
from jax.sharding import Mesh
from recorded_unclip import recorded, recorded_decoder

RECORDS = recorded()
INPUTS = {name: RECORDS[name] for name in ("embeddings", "noise", "latents")}
FEW = {"num_inference_steps": 5, "schedule": "ddim"}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return recorded_decoder(tmp_path_factory.mktemp("unclip"))


@functools.cache
def compiled_unet(spec):
    return jax.jit(UNet(spec).apply)


def end_of(decoder, schedule: str, steps: int, guidance: float = 10.0, level: int = 0, away=None):
    """The latents at the end of a schedule, one evaluation at a time.

    `away`: negative embeddings and their noise, labelled with level 0.
    """
    spec, params = decoder.spec, decoder.params
    table = schedules.make_table(schedule, spec.noise, steps)
    label = unclip.class_label(spec, params["normalizer"], INPUTS["embeddings"], INPUTS["noise"], level)
    nothing = jnp.zeros_like(label)
    if away is not None:
        nothing = unclip.class_label(spec, params["normalizer"], *away, 0)
    label = jnp.concatenate([nothing, label])
    text = np.broadcast_to(params["empty_prompt"], (6, *params["empty_prompt"].shape))
    state = schedules.start(jnp.asarray(INPUTS["latents"]))
    unet = compiled_unet(spec.unet)
    for row in range(len(table.time)):
        row = schedules.Table(*(part[row] for part in table))
        x = jnp.concatenate([state.latents] * 2)
        without, given = jnp.split(
            unet({"params": params["unet"]}, x, np.full(6, row.time, np.int64), text, label), 2
        )
        state = schedules.advance(state, row, without + guidance * (given - without))
    return np.asarray(state.latents)


def test_one_evaluation_of_the_network_is_as_recorded(decoder):
    text = np.broadcast_to(decoder.params["empty_prompt"], (6, *decoder.params["empty_prompt"].shape))
    twice = [np.tile(part, [2] + [1] * (part.ndim - 1)) for part in (INPUTS["latents"], RECORDS["times"])]
    label = np.tile(RECORDS["label at 30"], (2, 1))
    velocity = compiled_unet(decoder.spec.unet)({"params": decoder.params["unet"]}, *twice, text, label)
    assert RECORDS["velocity"].std() > 0.3
    np.testing.assert_allclose(velocity[:3], RECORDS["velocity"], atol=1e-5)


def test_the_empty_prompt_is_encoded_as_recorded(decoder):
    assert RECORDS["empty_prompt"].std() > 0.3
    np.testing.assert_allclose(decoder.params["empty_prompt"], RECORDS["empty_prompt"], atol=1e-5)


def test_the_class_label_is_the_noised_embedding_and_its_level(decoder):
    arguments = decoder.params["normalizer"], INPUTS["embeddings"], INPUTS["noise"], jnp.int32(30)
    label = unclip.class_label(decoder.spec, *arguments)
    np.testing.assert_allclose(label, RECORDS["label at 30"], atol=1e-6)


@pytest.mark.parametrize("schedule", ["plms", "ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_every_schedule_visits_the_recorded_times_and_ends_as_recorded(decoder, schedule, steps):
    table = schedules.make_table(schedule, decoder.spec.noise, steps)
    assert table.time.tolist() == RECORDS[f"times of {schedule}:{steps}"].tolist()
    expected = RECORDS[f"{schedule}:{steps}"]
    assert expected.std() > 0.5
    np.testing.assert_allclose(end_of(decoder, schedule, steps), expected, atol=1e-4)


def test_the_published_schedule_is_the_specified_one():
    table = schedules.make_table("plms", schedules.NoiseSpec(), 20)
    assert table.time.tolist() == [951, 901, 901, *range(851, 0, -50)] and len(table.time) == 21
    bar = schedules.signal(schedules.NoiseSpec())
    assert abs(bar[0] - 0.99914998) < 1e-7
    share = schedules.signal(EMBEDDING_NOISE)[0]
    assert abs(np.sqrt(share) - 0.9999793768) < 1e-7 and abs(np.sqrt(1 - share) - 0.0064269761) < 5e-6


def test_the_whole_pipeline_in_one_program_gives_the_recorded_pictures(decoder):
    seen = []
    pictures = decoder.decode(**INPUTS, progress=lambda done, total: seen.append((done, total)))
    colours = np.clip(RECORDS["colours of plms:20"] / 2 + 0.5, 0, 1) * 255
    assert pictures.dtype == np.uint8 and pictures.std() > 20
    assert np.abs(pictures - colours).max() < 0.51
    assert sorted(seen) == [(done, 21) for done in range(1, 22)]


def test_without_guidance_and_at_a_noise_level_it_is_as_recorded(decoder):
    options = {"guidance_scale": 1.0, "noise_level": 30}
    pictures = decoder.decode(**INPUTS, **FEW, **options)
    latents = RECORDS["ddim:5 without guidance at level 30"]
    colours = VaeDecoder(decoder.spec.vae).apply({"params": decoder.params["vae"]}, latents)
    assert np.abs(pictures - np.clip(colours / 2 + 0.5, 0, 1) * 255).max() < 0.52


def test_guidance_away_from_the_same_embedding_is_none_and_negatives_have_noise_level_0(decoder):
    table = schedules.make_table("ddim", decoder.spec.noise, 5)
    embeddings, noise, latents = (INPUTS[name] for name in ("embeddings", "noise", "latents"))
    program = jax.jit(functools.partial(unclip.denoise, decoder.spec, jnp.float32))
    same = unclip.Inputs(embeddings, noise, embeddings, noise, latents, None)
    guided = program(decoder.params, same, table, np.float32(10), np.int32(0))
    np.testing.assert_allclose(guided, end_of(decoder, "ddim", 5, guidance=1.0), atol=1e-4)
    other = same._replace(negatives=embeddings[::-1], negative_noise=-noise)
    away = program(decoder.params, other, table, np.float32(10), np.int32(30))
    expected = end_of(decoder, "ddim", 5, level=30, away=(embeddings[::-1], -noise))
    np.testing.assert_allclose(away, expected, atol=1e-4)
    assert np.abs(np.asarray(away) - guided).max() > 0.1


def test_a_picture_depends_on_nothing_else_in_its_batch(decoder):
    whole = decoder.decode(INPUTS["embeddings"], 7, **FEW)
    again = decoder.decode(INPUTS["embeddings"][[0, 2, 1]], jax.random.key(7), **FEW)
    np.testing.assert_array_equal(whole[0], again[0])
    options = {**FEW, "guidance_scale": jnp.float32(10)}
    older = decoder.decode(INPUTS["embeddings"], jax.random.PRNGKey(7), **options)
    np.testing.assert_array_equal(older, whole)
    assert (whole != decoder.decode(INPUTS["embeddings"], 8, **FEW)).mean() > 0.5
    many = np.repeat(INPUTS["embeddings"], 2, axis=0)  # more than one call of the program
    np.testing.assert_array_equal(decoder.decode(many, 7, **FEW)[0], whole[0])


@pytest.mark.parametrize("axes", [{"data": 8, "tensor": 1}, {"data": 2, "fsdp": 4}])
def test_eight_devices_make_the_same_pictures_as_one_with_an_eighth_of_the_batch_each(decoder, axes):
    embeddings = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)
    one = decoder.decode(embeddings, 1, **FEW)
    mesh = Mesh(np.array(jax.devices()).reshape(tuple(axes.values())), tuple(axes))
    sharded = unclip.UnclipDecoder(decoder.spec, decoder.params).on_mesh(mesh)
    assert sharded.place(embeddings[:8]).addressable_shards[0].data.shape == (1, 8)
    kernel = sharded.weights["unet"]["mid_resnet_0"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // axes.get("fsdp", 1)
    seen = []
    eight = sharded.decode(embeddings, 1, **FEW, progress=lambda done, total: seen.append((done, total)))
    assert eight.shape == one.shape and np.abs(eight.astype(int) - one).max() <= 1
    assert sorted(set(seen)) == [(done, 5) for done in range(1, 6)]
    with pytest.raises(UserError, match="neither 'data' nor 'fsdp'"):
        sharded.on_mesh(jax.make_mesh((8,), ("tensor",)))


@pytest.mark.parametrize("devices", [1, 8])
def test_what_progress_raises_comes_out_as_it_is(decoder, devices):
    class Stopped(Exception):
        pass

    def stop(done, total):
        seen.append(done)
        raise Stopped("by the user")

    other = unclip.UnclipDecoder(decoder.spec, decoder.params)
    if devices > 1:
        other.on_mesh(Mesh(np.array(jax.devices()), ("data",)))
    seen = []
    with pytest.raises(Stopped, match="by the user"):
        other.decode(INPUTS["embeddings"], **FEW, progress=stop)
    assert len(seen) == 1
    pictures = other.decode(**INPUTS, **FEW, progress=lambda *done: seen.append(done))
    assert seen[-1] == (5, 5) and pictures.shape == (3, 8, 8, 3)


def test_calls_at_the_same_time_each_hear_of_their_own_progress(decoder):
    alone = decoder.decode(**INPUTS, **FEW)
    ready, seen = threading.Barrier(4), [[] for _ in range(4)]

    def tell(index, *done):
        seen[index].append(done)
        if index == 3:
            raise LookupError("of the fourth call")

    def decode(index):
        ready.wait(timeout=60)
        return decoder.decode(**INPUTS, **FEW, progress=functools.partial(tell, index))

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(decode, index) for index in range(4)]
        for index in range(3):
            np.testing.assert_array_equal(calls[index].result(), alone)
            assert sorted(seen[index]) == [(done, 5) for done in range(1, 6)]
        with pytest.raises(LookupError, match="of the fourth call"):
            calls[3].result()
    assert len(seen[3]) == 1


def test_bfloat16_is_close_to_float32(decoder):
    half = unclip.UnclipDecoder(decoder.spec, decoder.params, "bfloat16")
    assert half.weights["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16
    difference = half.decode(**INPUTS, **FEW, guidance_scale=2.0).astype(int)
    difference -= decoder.decode(**INPUTS, **FEW, guidance_scale=2.0)
    assert np.abs(difference).mean() < 3


def test_the_published_sizes_have_the_published_number_of_parameters():
    shapes = unclip.abstract_params(unclip.UnclipSpec())

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert count(shapes["unet"]) == 870_173_124
    assert count(shapes["vae"]) == 49_490_179 + 20  # the decoder, and the 1×1 convolution in front of it
    assert shapes["empty_prompt"].shape == (77, 1024)
    spec = unclip.UnclipSpec()
    program = functools.partial(unclip.generate, spec, jnp.bfloat16)
    pictures = jax.eval_shape(program, *unclip.abstract_arguments(spec, 4))
    assert (pictures.shape, pictures.dtype) == ((4, 768, 768, 3), jnp.uint8)
    assert (spec.embedding_dim, spec.image_size, spec.latent_shape) == (1024, 768, (96, 96, 4))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"embeddings": np.zeros((2, 7))}, ["[batch, 8]", "[2, 7]"]),
        ({"embeddings": np.zeros((0, 8))}, ["[0, 8]"]),
        ({"embeddings": np.full((2, 8), np.nan)}, ["Row 0", "`embeddings`", "not finite"]),
        ({"negative_embeddings": np.zeros((2, 8))}, ["`negative_embeddings`", "[3, 8]"]),
        ({"latents": np.zeros((3, 4, 4, 5))}, ["`latents`", "[3, 4, 4, 4]"]),
        ({"noise": np.full((3, 8), np.inf)}, ["`noise`", "not finite"]),
        ({"prompt_embeddings": np.zeros((1, 6, 9))}, ["`prompt_embeddings`", "[3, 6, 8]"]),
        ({"num_inference_steps": 0}, ["num_inference_steps", "1..999", "0"]),
        ({"num_inference_steps": 1000}, ["num_inference_steps", "1000"]),
        ({"num_inference_steps": 2.5}, ["num_inference_steps", "2.5"]),
        ({"num_inference_steps": 1000, "schedule": "dpm++"}, ["num_inference_steps", "'dpm++'"]),
        ({"schedule": "euler"}, ["'euler'", "plms, ddim, dpm++"]),
        ({"noise_level": 1000}, ["noise_level", "0..999"]),
        ({"noise_level": 2.5}, ["noise_level", "whole number", "2.5"]),
        ({"guidance_scale": float("nan")}, ["guidance_scale"]),
        ({"guidance_scale": "3"}, ["guidance_scale", "'3'"]),
        ({"guidance_scale": None}, ["guidance_scale", "None"]),
        ({"guidance_scale": True}, ["guidance_scale", "True"]),
        ({"guidance_scale": 10**400}, ["guidance_scale"]),
        ({"guidance_scale": np.ones(2)}, ["guidance_scale", "an array [2]"]),
        ({"key": "7"}, ["`key`", "a seed", "'7'"]),
        ({"key": 1.5}, ["`key`", "1.5"]),
        ({"key": None}, ["`key`", "None"]),
        ({"key": 2**64}, ["`key`", "64 bits"]),
        ({"key": np.zeros(2)}, ["`key`", "an array [2]"]),
        ({"key": jax.random.split(jax.random.key(0))}, ["`key`", "one JAX key", "an array [2]"]),
    ],
)
def test_impossible_arguments_are_one_sentence(decoder, changes, words):
    with pytest.raises(UserError) as caught:
        decoder.decode(**{"embeddings": INPUTS["embeddings"], **changes})
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_directory_that_holds_no_decoder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="import-unclip"):
        unclip.UnclipDecoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "seanet"}')
    with pytest.raises(UserError, match="import-unclip"):
        unclip.UnclipDecoder.from_pretrained(tmp_path)


def test_a_config_that_lacks_a_field_or_has_a_value_that_makes_no_model_is_one_sentence(tmp_path):
    recorded_decoder(tmp_path)
    path = tmp_path / "decoder" / "config.json"
    whole = json.loads(path.read_text())
    for change, words in [
        (lambda config: config.pop("schedule"), ["config.json", "'schedule'"]),
        (lambda config: config.pop("unet"), ["config.json", "'unet'"]),
        (lambda config: config["unet"].pop("heads"), ["'unet'", "'heads'"]),
        (lambda config: config["vae"].update(tiles=2), ["'vae'", "'tiles'", "not known"]),
        (lambda config: config.update(text=[]), ["'text'", "lacks"]),
        (lambda config: config["vae"].update(scaling=0), ["config.json: 'vae': scaling is 0", "above 0"]),
        (lambda config: config["noise"].update(first="a"), ["'noise': first is 'a'", "a number"]),
        (lambda config: config["noise"].update(last=5.0), ["'noise': last is 5.0", "below 1"]),
        (lambda config: config["noise"].update(offset=-5), ["'noise': offset is -5"]),
        (lambda config: config["noise"].update(offset=999), ["'noise': offset is 999", "half of the 1000"]),
        (lambda config: config["unet"].update(attention=[1, 0]), ["'unet': attention is", "true and false"]),
        (lambda config: config["unet"].update(channels=[]), ["'unet': channels is", "whole numbers"]),
        (lambda config: config.update(schedule=["x"]), ["'schedule' is ['x']", "plms, ddim"]),
        (lambda config: config.update(empty_prompt_tokens=None), ["'empty_prompt_tokens'", "6 whole"]),
        (lambda config: config.update(dtype="float16"), ["float32 or bfloat16", "'float16'"]),
    ]:
        config = json.loads(json.dumps(whole))
        change(config)
        path.write_text(json.dumps(config))
        with pytest.raises(UserError) as caught:
            unclip.UnclipDecoder.from_pretrained(path.parent)
        assert all(word in str(caught.value) for word in words), caught.value
    path.write_text("[]")
    with pytest.raises(UserError, match="import-unclip"):
        unclip.UnclipDecoder.from_pretrained(path.parent)
