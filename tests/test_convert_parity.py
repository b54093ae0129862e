"""Export and import against transformers itself (extra `parity`)."""

import jax.numpy as jnp
import numpy as np
import pytest
import random_llama
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.safetensors_file import SafetensorsFile
from test_parity_llama import greedy

from anygpt_jax.checkpoint import load_model
from anygpt_jax.convert import export_hf, import_hf
from anygpt_jax.model.decoder import Decoder

pytestmark = pytest.mark.parity


def reference(vocab, num_kv_heads):
    """A random two-layer LlamaForCausalLM over a vocabulary."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = random_llama.hf_config(random_llama.decoder_config(vocab, num_kv_heads))
    config = transformers.LlamaConfig(**config, initializer_range=0.2, attn_implementation="eager")
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("num_kv_heads", "form"), [(4, "safetensors"), (2, "torch"), (2, "one torch file")])
def test_transformers_to_ours_and_back_is_exact(num_kv_heads, form, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    vocab = random_llama.media_vocabulary()
    model = reference(vocab, num_kv_heads)
    size = "10GB" if form == "one torch file" else "300KB"
    model.save_pretrained(tmp_path / "hf", safe_serialization=form == "safetensors", max_shard_size=size)
    random_llama.write_settings(tmp_path / "hf", vocab, random_llama.decoder_config(vocab, num_kv_heads))
    import_hf(tmp_path / "hf", tmp_path / "ckpt")
    loaded = load_model(tmp_path / "ckpt")
    decoder = Decoder(loaded.config)
    prompts = np.random.default_rng(1).integers(0, vocab.size, (20, 24))
    with torch.no_grad():
        expected = model(torch.as_tensor(prompts)).logits.numpy()
        continued = model.generate(
            torch.as_tensor(prompts),
            attention_mask=torch.ones(prompts.shape, dtype=torch.long),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        ).numpy()[:, prompts.shape[1] :]
    hidden, _ = decoder.apply({"params": loaded.params}, jnp.asarray(prompts))
    logits = decoder.apply({"params": loaded.params}, hidden, method="logits")
    np.testing.assert_allclose(logits[..., : vocab.size], expected, atol=1e-4, rtol=0)
    np.testing.assert_array_equal(greedy(decoder, loaded.params, prompts, 64), continued)

    export_hf(tmp_path / "ckpt", tmp_path / "out", shard_bytes=300_000)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.as_tensor(prompts)).logits.numpy(), expected)


def test_the_exported_tokenizer_gives_our_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab = random_llama.media_vocabulary()
    random_llama.write_llama(tmp_path / "hf", vocab, random_llama.decoder_config(vocab))
    import_hf(tmp_path / "hf", tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == vocab.size
    text, speech = random_llama.tokenizer(), vocab.modality("speech")
    code = speech.code_format.format(n=1023)
    written = f"[Human]: draw a circle {speech.start_tag}{code}{speech.end_tag}<eoh> [MMGPT]:"
    ours = [1, vocab.control["[Human]"], *text.encode_run(": draw a circle ")]
    ours += [speech.start_id, speech.first_id + 1023, speech.end_id, vocab.control["<eoh>"]]
    ours += [*text.encode_run(" "), vocab.control["[MMGPT]"], *text.encode_run(":")]
    assert theirs(written)["input_ids"] == ours


def write_torch_file(directory, zipped):
    """A directory with a torch file, as torch writes it now or (not zipped) as before 1.6: what is in it."""
    torch = pytest.importorskip("torch")
    vocab = random_llama.media_vocabulary()
    state = reference(vocab, 2).state_dict()
    directory.mkdir()
    torch.save(state, directory / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    random_llama.write_settings(directory, vocab, random_llama.decoder_config(vocab))
    return {name: value.numpy() for name, value in state.items()}


def test_a_torch_file_of_the_old_form_is_read_too(tmp_path):
    values = write_torch_file(tmp_path / "hf", zipped=False)
    import_hf(tmp_path / "hf", tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    back = SafetensorsFile(tmp_path / "out/model.safetensors")
    assert sorted(back.shapes) == sorted(values)
    for name, value in values.items():
        np.testing.assert_array_equal(back.read(name), value)


@pytest.mark.parametrize(("zipped", "end"), [(True, -1000), (False, -1000), (False, 16), (False, 18)])
def test_a_cut_torch_file_is_named(zipped, end, tmp_path):
    write_torch_file(tmp_path / "hf", zipped)
    path = tmp_path / "hf/pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(UserError, match=r"pytorch_model.bin, which should hold .* is cut off"):
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_would_run_code_is_refused(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    vocab = random_llama.media_vocabulary()
    (tmp_path / "hf").mkdir()
    random_llama.write_settings(tmp_path / "hf", vocab, random_llama.decoder_config(vocab))
    path = tmp_path / "hf/pytorch_model.bin"
    torch.save({"model.norm.weight": Loud()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="no plain torch checkpoint"):
        import_hf(tmp_path / "hf", tmp_path / "out")
    assert not LOUD


LOUD = []


class Loud:
    """Its unpickling would leave a trace."""

    def __reduce__(self):
        return LOUD.append, (1,)
