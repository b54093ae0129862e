"""A real photo, human speech and music go the whole way: codes, rows, some training, media again."""

import json
from pathlib import Path

import pytest
from anygpt_tokenizers.cli import load_config

from anygpt_jax import prompts
from anygpt_jax.data import defaults, documents, tokenizing
from anygpt_jax.sampling.generator import Generator
from anygpt_jax.shipped import open_model
from anygpt_jax.training import loop

REAL_MEDIA = Path(__file__).parents[2] / "shared" / "data" / "infer"
FILES = {
    "image": "cat.jpg",
    "speech": "can_you_draw_me_a_picture_of_a_sunny_beach.wav",
    "music": "indie_rock.wav",
}


@pytest.mark.skipif(not REAL_MEDIA.is_dir(), reason="no folder of real media (shared/data/infer)")
def test_real_media_are_tokenised_packed_trained_on_and_sampled(tmp_path):
    config = load_config("configs/tiny.py:dummy")
    rows = [{"text": f"a real {name}", name: str(REAL_MEDIA / file)} for name, file in FILES.items()]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    codecs = defaults.load_codecs(config.codecs)
    vocabulary, text_tokenizer = defaults.build_vocabulary(config.vocabulary, codecs)
    meta = tokenizing.tokenize_manifest(
        tmp_path / "manifest.jsonl", tmp_path / "tokens", vocabulary, codecs, config.tokenize.crop
    )
    assert meta["items"] == dict.fromkeys(FILES, 1)

    tokens, packed, instructions = tmp_path / "tokens", tmp_path / "packed", prompts.load_instructions()
    settings = {**config.pack, "repeats": 4}
    documents.pack_tokens([str(tokens)], packed, vocabulary, text_tokenizer, instructions, **settings)
    config.data.dir, config.steps = str(packed), 3
    loop.train(config, str(tmp_path / "model"))

    generator = Generator(open_model(str(tmp_path / "model")))
    for name, file in FILES.items():
        assert generator.run(f"{name}|text|{REAL_MEDIA / file}", tmp_path, budget=8).text is not None
        assert generator.run(f"text|{name}|a real {name}", tmp_path / "samples").path.stat().st_size > 0
