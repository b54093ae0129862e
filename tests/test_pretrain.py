"""The paper's pre-training, from files of the original format to a checkpoint, with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sentencepiece import sentencepiece_model_pb2

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT.parent / "shared" / "data" / "pretrain"
TEXT_MODEL = ROOT / "anygpt_jax" / "assets" / "smallworld.model"


@pytest.fixture
def llama_sized_model(tmp_path):
    """The small text model with as many pieces as LLaMA's."""
    model = sentencepiece_model_pb2.ModelProto.FromString(TEXT_MODEL.read_bytes())
    for index in range(len(model.pieces), 32_000):
        model.pieces.add(piece=f"\u2581unseen{index}", score=-1000.0)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.SerializeToString())
    return path


def _run(module, *arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}  # one device
    command = [sys.executable, "-m", module, "--config=configs/pretrain.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"the original sample data is not at {SAMPLES}")
def test_the_pretraining_config_packs_the_original_samples_and_trains_on_them(tmp_path, llama_sized_model):
    groups = {"image": "journeydb", "speech": "gigaspeech", "music": "music-1m"}
    tokens = ",".join(f"{group}={SAMPLES}/{file}.jsonl" for group, file in groups.items())
    text_model = f"--config.vocabulary.text_model={llama_sized_model}"
    packed, workdir = tmp_path / "packed", tmp_path / "model"
    assert "rows of 4608" in _run("anygpt_jax.pack", f"--tokens={tokens}", f"--out={packed}", text_model)
    small = ["model.preset=dummy", "model.dtype=float32", "steps=2", "log_every=1", "data.batch_size=2"]
    small += ["mesh.fsdp=1", "optimizer.accumulation=1", "data.mixture.mmc4=0", "data.mixture.mls=0"]
    _run(
        "anygpt_jax.train",
        f"--workdir={workdir}",
        f"--config.data.dir={packed}",
        *[f"--config.{field}" for field in small],
    )
    log = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]
    assert 0.8 * 10.9 < log[0]["loss"] < 1.2 * 10.9  # ln 53,516 before it has learnt anything
