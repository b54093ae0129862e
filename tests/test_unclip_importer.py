"""Importing a Stable unCLIP: every key and every field accounted for, old spellings read, mistakes named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import map_arrays
from anygpt_tokenizers.unclip import UnclipDecoder
from anygpt_tokenizers.unclip_importer import import_unclip
from anygpt_tokenizers.unclip_prompts import embed_prompts
from recorded_unclip import VOCABULARY, recorded_decoder, write_directory

ROOT = Path(__file__).parents[1]


def imported(folder, change, **options) -> bytes:
    """The weights file that comes of a changed directory."""
    write_directory(folder / "source", change)
    import_unclip(folder / "source", folder / "decoder", **options)
    return (folder / "decoder" / "weights.safetensors").read_bytes()


def refused(folder, change) -> str:
    """The sentence with which a changed directory is refused; nothing must be written."""
    write_directory(folder / "source", change)
    with pytest.raises(UserError) as caught:
        import_unclip(folder / "source", folder / "decoder")
    assert [path.name for path in folder.iterdir()] == ["source"]
    return str(caught.value)


def test_old_spellings_of_keys_give_the_same_weights(tmp_path):
    def old_vae(states, configs):
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for key in [key for key in states["vae"] if "mid_block.attentions" in key]:
            new = key
            for theirs, older in names.items():
                new = new.replace(f".{theirs}.", f".{older}.")
            states["vae"][new] = states["vae"].pop(key)

    def bare_text(states, configs):
        state = states["text_encoder"]
        for key in [key for key in state if key.startswith("text_model.")]:
            state[key.removeprefix("text_model.")] = state.pop(key)

    def with_positions(states, configs):
        states["text_encoder"]["text_model.embeddings.position_ids"] = np.arange(6)[None]

    def halves(states, configs):  # of the same numbers
        for state in states.values():
            state.update({key: value.astype(np.float16) for key, value in state.items()})

    plain = imported(tmp_path / "plain", lambda states, configs: None)
    for change in (old_vae, bare_text, with_positions, halves):
        assert imported(tmp_path / change.__name__, change) == plain


def test_weights_are_written_in_bfloat16_on_request(tmp_path):
    imported(tmp_path, lambda states, configs: None, param_dtype="bfloat16")
    weights = map_arrays(tmp_path / "decoder" / "weights.safetensors")
    assert {array.dtype.name for array in weights.values()} == {"bfloat16"}
    decoder = UnclipDecoder.from_pretrained(tmp_path / "decoder")
    pictures = decoder.decode(np.ones((1, 8)), num_inference_steps=1, guidance_scale=0.0)
    assert pictures.shape == (1, 8, 8, 3)


def test_a_decoder_computes_in_the_dtype_it_was_imported_with(tmp_path):
    imported(tmp_path, lambda states, configs: None, dtype="bfloat16")
    assert UnclipDecoder.from_pretrained(tmp_path / "decoder").dtype == "bfloat16"
    assert UnclipDecoder.from_pretrained(tmp_path / "decoder", "float32").dtype == "float32"
    path = tmp_path / "decoder" / "config.json"
    old = json.loads(path.read_text())
    del old["dtype"]
    path.write_text(json.dumps(old))
    assert UnclipDecoder.from_pretrained(tmp_path / "decoder").dtype == "float32"
    with pytest.raises(UserError, match="float32 or bfloat16, not in float16"):
        import_unclip(tmp_path / "source", tmp_path / "other", dtype="float16")


def test_what_is_left_out_is_counted(tmp_path):
    write_directory(tmp_path / "source")
    config = import_unclip(tmp_path / "source", tmp_path / "decoder")
    state = safetensors.numpy.load_file(tmp_path / "source/vae/diffusion_pytorch_model.safetensors")
    unused = [key for key in state if key.startswith(("encoder.", "quant_conv."))]
    assert config["left_out"] == {"keys of vae": len(unused), "folders": ["image_encoder"]}
    assert config["empty_prompt_tokens"] == [58, 59, 0, 0, 0, 0]
    with pytest.raises(UserError, match="exists already"):
        import_unclip(tmp_path / "source", tmp_path / "decoder")


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("unet", "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2.bias"),
        ("vae", "decoder.mid_block.attentions.0.to_out.0.weight"),
        ("text_encoder", "text_model.encoder.layers.1.mlp.fc2.weight"),
        ("image_normalizer", "std"),
    ],
)
def test_keys_that_are_missing_unknown_or_of_another_shape_are_named(part, key, tmp_path):
    def lost(states, configs):
        del states[part][key]

    def wider(states, configs):
        states[part][key] = np.zeros((3, 3, 3), np.float32)

    def extra(states, configs):
        states[part]["something.lora_up.weight"] = np.zeros(2, np.float32)

    short = key.removeprefix("text_model.")
    for change, words in [
        (lost, [short, part, "missing"]),
        (wider, [key, part, "(3, 3, 3)"]),
        (extra, ["something.lora_up.weight", part, "not known"]),
    ]:
        sentence = refused(tmp_path / change.__name__, change)
        assert all(word in sentence for word in words), sentence


def test_two_spellings_of_one_weight_are_named(tmp_path):
    key = "text_model.final_layer_norm.bias"

    def change(states, configs):
        state = states["text_encoder"]
        state[key.removeprefix("text_model.")] = state[key] + 1

    sentence = refused(tmp_path, change)
    assert repr(key) in sentence and "'final_layer_norm.bias'" in sentence and "one weight" in sentence


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_tensor_with_a_number_that_is_not_finite_is_named(number, tmp_path):
    key = "decoder.mid_block.attentions.0.to_out.0.weight"

    def change(states, configs):
        states["vae"][key] = states["vae"][key].copy()
        states["vae"][key].flat[-1] = number

    sentence = refused(tmp_path, change)
    assert key in sentence and "vae" in sentence and "not finite" in sentence


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("unet", "use_linear_projection", False),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "only_cross_attention", True),
        ("unet", "time_cond_proj_dim", 256),
        ("unet", "brand_new_field", 1),
        ("unet", "down_block_types", ["DownBlock2D", "AttnDownBlock2D"]),
        ("unet", "sample_size", None),
        ("vae", "act_fn", "relu"),
        ("vae", "use_post_quant_conv", False),
        ("vae", "shift_factor", 0.1),
        ("text_encoder", "hidden_act", "relu"),
        ("scheduler", "prediction_type", "epsilon"),
        ("scheduler", "skip_prk_steps", False),
        ("scheduler", "timestep_spacing", "trailing"),
        ("scheduler", "_class_name", "EulerDiscreteScheduler"),
        ("image_noising_scheduler", "beta_schedule", "sigmoid"),
        ("unet", "attention_head_dim", 0),
        ("unet", "attention_head_dim", "x"),
        ("unet", "attention_head_dim", [3, 4]),
        ("unet", "block_out_channels", 8),
        ("unet", "norm_num_groups", 0),
        ("unet", "norm_num_groups", 5),
        ("unet", "norm_eps", None),
        ("unet", "sample_size", 5),
        ("unet", "down_block_types", 2),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", None),
        ("vae", "scaling_factor", "x"),
        ("vae", "norm_num_groups", 3),
        ("vae", "latent_channels", 0),
        ("text_encoder", "num_attention_heads", 3),
        ("text_encoder", "layer_norm_eps", "x"),
        ("text_encoder", "hidden_act", ["gelu"]),
        ("image_normalizer", "embedding_dim", None),
        ("scheduler", "beta_start", "a"),
        ("scheduler", "beta_start", None),
        ("scheduler", "beta_end", 5.0),
        ("scheduler", "steps_offset", "1"),
        ("scheduler", "steps_offset", -5),
        ("scheduler", "steps_offset", 999),
        ("scheduler", "set_alpha_to_one", "false"),
        ("scheduler", "_class_name", ["DDIMScheduler"]),
        ("image_noising_scheduler", "beta_end", "0.02"),
    ],
)
def test_a_pipeline_of_another_kind_or_that_makes_no_model_is_refused_by_its_field(
    part, field, value, tmp_path
):
    def change(states, configs):
        configs[part][field] = value

    sentence = refused(tmp_path, change)
    assert (field in sentence or field == "_class_name") and part in sentence
    assert repr(value) in sentence or str(value) in sentence


def test_parts_of_different_widths_are_refused(tmp_path):
    def change(states, configs):
        configs["image_normalizer"]["embedding_dim"] = 4

    sentence = refused(tmp_path, change)
    assert "normalizer" in sentence and "8 and 16" in sentence


def test_a_directory_without_a_part_or_with_damaged_weights_is_one_sentence(tmp_path):
    write_directory(tmp_path / "source")
    weights = tmp_path / "source/unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content, words in [
        (whole[:1000], "header is not readable"),
        (b"", "header is not readable"),
        (None, "has no weights"),
    ]:
        if content is None:
            weights.unlink()
        else:
            weights.write_bytes(content)
        with pytest.raises(UserError, match=words):
            import_unclip(tmp_path / "source", tmp_path / "decoder")
    for name in ("model.safetensors.index.json", "diffusion_pytorch_model.bf16.safetensors"):
        (tmp_path / "source/unet" / name).write_bytes(whole)
        with pytest.raises(UserError, match=rf"has no weights.* \(not {name}: save the model again"):
            import_unclip(tmp_path / "source", tmp_path / "decoder")
    (tmp_path / "source/image_normalizer/config.json").write_text("{")
    with pytest.raises(UserError, match="JSON"):
        import_unclip(tmp_path / "source", tmp_path / "decoder")
    (tmp_path / "source/tokenizer").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no folder 'tokenizer'"):
        import_unclip(tmp_path / "source", tmp_path / "decoder")


def test_the_vocabulary_may_lie_in_tokenizer_json(tmp_path):
    write_directory(tmp_path / "source")
    folder = tmp_path / "source/tokenizer"
    vocabulary = json.loads((folder / "vocab.json").read_text())
    added = [{"id": vocabulary.pop("<|endoftext|>"), "content": "<|endoftext|>"}]
    (folder / "vocab.json").unlink()
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": vocabulary}, "added_tokens": added})
    )
    config = import_unclip(tmp_path / "source", tmp_path / "decoder")
    assert config["empty_prompt_tokens"] == [58, 59, 0, 0, 0, 0]
    vocabulary.pop("!")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(UserError, match="not in the vocabulary"):
        import_unclip(tmp_path / "source", tmp_path / "other")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("vocab.json", {**VOCABULARY, "<|endoftext|>": "59"}, "number of '<|endoftext|>' is '59'"),
        ("vocab.json", {**VOCABULARY, "!": -1}, "number of '!' is -1"),
        ("tokenizer_config.json", {"pad_token": ["!"]}, "pad_token, or its content, is ['!']"),
        ("tokenizer_config.json", {"bos_token": {"id": 58}}, "bos_token, or its content, is None"),
        ("tokenizer.json", {"model": {"vocab": VOCABULARY}, "added_tokens": [5]}, "source has a field that"),
        ("tokenizer.json", {"model": {}, "added_tokens": None}, "not in the vocabulary"),
    ],
)
def test_what_is_no_tokenizer_is_one_sentence(tmp_path, file, content, words):
    write_directory(tmp_path / "source")
    if file == "tokenizer.json":
        (tmp_path / "source/tokenizer/vocab.json").unlink()
    (tmp_path / "source/tokenizer" / file).write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        import_unclip(tmp_path / "source", tmp_path / "decoder")
    assert words in str(caught.value) and str(caught.value).startswith(str(tmp_path / "source"))


def test_prompts_go_through_the_imported_text_encoder(tmp_path):
    decoder = recorded_decoder(tmp_path)
    with pytest.raises(UserError, match="no tokenizer for prompts"):
        embed_prompts(tmp_path / "decoder", ["word3"])
    (tmp_path / "source/tokenizer/merges.txt").write_text("#version: 0.2\n")
    import_unclip(tmp_path / "source", tmp_path / "prompted")
    empty, other = embed_prompts(tmp_path / "prompted", ["", "!"])
    np.testing.assert_allclose(empty, decoder.params["empty_prompt"], atol=1e-6)
    assert np.abs(other - empty).max() > 0.1
    with pytest.raises(UserError, match="at least one text"):
        embed_prompts(tmp_path / "prompted", [])


def test_the_command_imports_and_says_what_it_left_out(tmp_path):
    write_directory(tmp_path / "source")
    command = [sys.executable, "-m", "anygpt_jax.convert", "import-unclip", f"--out={tmp_path}/decoder"]
    given = f"--src={tmp_path}/source", "--dtype=bfloat16"
    done = subprocess.run([*command, *given], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "unCLIP decoder" in done.stdout and "folders image_encoder" in done.stdout
    decoder = UnclipDecoder.from_pretrained(tmp_path / "decoder")
    assert decoder.spec.image_size == 8 and decoder.dtype == "bfloat16"
    done = subprocess.run([*command, f"--src={tmp_path}/none"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no folder 'unet'" in done.stderr.splitlines()[-1]
