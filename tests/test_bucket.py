"""A run in a bucket keeps the promises of one on a disk; the service is that of fake_gcs.py."""

import importlib.util
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import random_llama
from anygpt_tokenizers.cli import UserError
from anygpt_tokenizers.codec import shipped_codec
from etils import epath
from fake_data import FakeData, small_vocabulary
from test_multihost import ROOT, _finish, _free_address, _losses, _train_here, packed, start  # noqa: F401
from test_training import curve, dummy_config, one_device, start_run  # noqa: F401

from anygpt_jax import integrity, sharding, storage, vocabulary
from anygpt_jax.checkpoint import Codecs, abstract_params, load_model, write_companions
from anygpt_jax.convert import export_hf, grow, import_hf
from anygpt_jax.text import TextTokenizer
from anygpt_jax.training import loop

BUCKET = "gs://bucket"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcsfs") is None, reason="a bucket needs the extra 'gcs', which 'test' includes"
)


@pytest.fixture(scope="module")
def service():
    import fake_gcs  # needs what the extra installs

    with fake_gcs.serving("bucket", "closed", "read-only") as service:
        service.closed.add("closed")
        service.read_only.add("read-only")
        yield service


def _names(service, prefix):
    with service.lock:
        return [name for name in service.buckets["bucket"] if name.startswith(prefix)]


def _copy(service, source, target):
    for name in _names(service, f"{source}/"):
        service.put("bucket", target + name.removeprefix(source), service.buckets["bucket"][name].data)


def _upload(service, directory, target):
    for path in directory.rglob("*"):
        if path.is_file():
            service.put("bucket", f"{target}/{path.relative_to(directory)}", path.read_bytes())


def _steps(service, run):
    """The steps that Orbax calls finished."""
    names = [name.split("/") for name in _names(service, f"{run}/checkpoints/")]
    return sorted(int(name[-2]) for name in names if len(name) == 4 and name[-1] == "commit_success.txt")


def _train(workdir, **changes):
    """Thirty steps with a checkpoint of every tenth."""
    config = dummy_config(steps=30, checkpoint__every=10, **changes)
    loop.train(config, str(workdir), FakeData(), one_device())
    TextTokenizer("shipped:smallworld").save(epath.Path(workdir) / "text.model")  # what load_model wants


@pytest.fixture(scope="module")
def trained(service, tmp_path_factory):
    """The same run in the bucket, as "trained", and in a directory, which is returned."""
    directory = tmp_path_factory.mktemp("trained")
    _train(f"{BUCKET}/trained")
    _train(directory)
    return directory


def test_a_run_in_a_bucket_is_the_run_on_a_disk_and_loads_like_it(service, trained):
    assert curve(f"{BUCKET}/trained") == curve(trained)
    there, here = load_model(f"{BUCKET}/trained"), load_model(trained)
    assert (there.step, there.config, there.vocabulary) == (here.step, here.config, here.vocabulary)
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    on_disk = {path.name for path in trained.glob("*")} - {".lock"}
    assert {name.split("/")[1] for name in _names(service, "trained/")} == on_disk
    assert any("events.out.tfevents" in name for name in _names(service, "trained/tensorboard/"))


def test_a_run_starts_from_parameters_in_a_bucket(trained):
    model = loop.model_config(dummy_config().model, small_vocabulary())
    abstract = abstract_params(model, None, sharding.DEFAULT_RULES)
    params = loop.initial_parameters(f"{BUCKET}/trained", model, small_vocabulary(), abstract)
    jax.tree.map(np.testing.assert_array_equal, params, load_model(trained).params)


def _flip_a_bit(data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


DAMAGES = {"bytes instead of": lambda data: data[:-7], "other bytes": _flip_a_bit, "is missing": None}


@pytest.mark.parametrize("words", DAMAGES)
def test_training_names_a_damaged_object_and_goes_on_from_the_checkpoint_before(
    service, trained, capsys, words
):
    run = words.replace(" ", "_")
    _copy(service, "trained", run)
    objects = service.buckets["bucket"]
    victim = max(_names(service, f"{run}/checkpoints/30/"), key=lambda name: len(objects[name].data))
    if DAMAGES[words]:
        service.put("bucket", victim, DAMAGES[words](objects[victim].data))
    else:
        del objects[victim]
    with pytest.raises(UserError, match=words):
        load_model(f"{BUCKET}/{run}", 30)
    assert load_model(f"{BUCKET}/{run}").step == 20
    _train(f"{BUCKET}/{run}")
    said = capsys.readouterr().err
    assert words in said and "training goes on from step 20" in said
    assert load_model(f"{BUCKET}/{run}").step == 30
    assert curve(f"{BUCKET}/{run}") == curve(trained)
    assert _names(service, f"{run}/damaged/30/")


def test_no_byte_of_a_checkpoint_is_read_for_its_checksums(service, trained, monkeypatch):
    monkeypatch.setattr(service, "reads", [])
    assert integrity.newest_whole(f"{BUCKET}/trained", [10, 20, 30]) == (30, {})
    assert service.reads == ["trained/checksums/30.json"]


def test_a_checkpoint_may_move_between_a_disk_and_a_bucket(service, trained, tmp_path):
    _upload(service, trained, "moved")
    assert load_model(f"{BUCKET}/moved").step == 30
    for name in _names(service, "trained/"):
        path = tmp_path / name.removeprefix("trained/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(service.buckets["bucket"][name].data)
    assert load_model(tmp_path).step == 30


def test_old_checkpoints_leave_the_bucket_with_their_checksums(service):
    _train(f"{BUCKET}/kept", checkpoint__keep=2)
    assert _steps(service, "kept") == [20, 30]
    assert {name.split("/")[2] for name in _names(service, "kept/checkpoints/")} == {"20", "30"}
    assert _names(service, "kept/checksums/") == ["kept/checksums/20.json", "kept/checksums/30.json"]


def test_a_run_killed_between_and_during_saves_continues_bit_for_bit(service, tmp_path, start_run):  # noqa: F811
    def wait_for(condition):
        end = time.monotonic() + 300
        while not condition():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.01)

    run = f"{BUCKET}/killed"
    process = start_run(run)
    wait_for(lambda: 14 in _steps(service, "killed"))
    process.kill()
    process.wait()
    process = start_run(run)
    wait_for(lambda: _names(service, "killed/checkpoints/35/"))  # which is not finished yet
    process.kill()
    process.wait()
    assert 28 in _steps(service, "killed") and 35 not in _steps(service, "killed")
    assert curve(run)[-1]["step"] >= 28  # the log never lags the newest checkpoint

    process = start_run(run)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors

    loop.train(dummy_config(steps=60, checkpoint__every=7), str(tmp_path), FakeData(), one_device())
    assert curve(run) == curve(tmp_path) and len(curve(run)) == 12
    model = loop.model_config(dummy_config().model, small_vocabulary())
    abstract = abstract_params(model, None, sharding.DEFAULT_RULES)
    ends = []
    for workdir in (run, tmp_path):
        TextTokenizer("shipped:smallworld").save(epath.Path(workdir) / "text.model")
        ends.append(loop.initial_parameters(workdir, model, small_vocabulary(), abstract))
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.long
def test_two_processes_of_one_device_train_and_resume_in_a_bucket(service, tmp_path, packed, start):  # noqa: F811
    for steps in (10, 20):
        together = [f"--coordinator={_free_address()}", "--num_processes=2"]
        arguments = [[*together, f"--process_id={index}"] for index in range(2)]
        _finish(*(start(f"{BUCKET}/two", packed, 1, each, steps=steps, mesh__fsdp=2) for each in arguments))
    _train_here(tmp_path, packed, 2, steps=20, mesh__fsdp=2)
    assert _losses(f"{BUCKET}/two") == pytest.approx(_losses(tmp_path), rel=1e-5)
    assert _losses(f"{BUCKET}/two/hosts/1") == _losses(f"{BUCKET}/two")
    assert not _names(service, "two/.preflight")


def test_codecs_go_to_a_bucket_and_come_back(service):
    codec, text = shipped_codec("image"), TextTokenizer("shipped:smallworld")
    words = vocabulary.from_config({"modalities": [{"name": "image"}]}, text, {"image": codec})
    write_companions(storage.locate(f"{BUCKET}/codecs"), words, text, {"image": None})
    back = Codecs(f"{BUCKET}/codecs", words)["image"]
    assert back.hash == codec.hash
    assert list(service.buckets["bucket"])[-1] == "codecs/vocabulary.json"  # written last


def test_weights_are_exported_and_grown_from_a_bucket(service, tmp_path):
    words = random_llama.media_vocabulary()
    random_llama.write_llama(tmp_path / "hf", words, random_llama.decoder_config(words))
    import_hf(tmp_path / "hf", tmp_path / "imported")
    _upload(service, tmp_path / "imported", "imported")
    export_hf(tmp_path / "imported", tmp_path / "from_disk")
    export_hf(f"{BUCKET}/imported", tmp_path / "from_bucket")
    for path in (tmp_path / "from_disk").iterdir():
        assert (tmp_path / "from_bucket" / path.name).read_bytes() == path.read_bytes()
    config = grow(f"{BUCKET}/imported", str(tmp_path / "imported"), tmp_path / "grown")
    assert config == load_model(tmp_path / "imported").config
    objects = service.buckets["bucket"]
    victim = max(_names(service, "imported/checkpoints/0/"), key=lambda name: len(objects[name].data))
    service.put("bucket", victim, objects[victim].data[:-7])
    with pytest.raises(UserError, match="bytes instead of"):
        export_hf(f"{BUCKET}/imported", tmp_path / "from_bucket_again", step=0)


def test_a_missing_bucket_is_one_sentence_of_the_command(service):
    command = [sys.executable, "-m", "anygpt_jax.train", "--config=configs/tiny.py:dummy"]
    command.append("--workdir=gs://nowhere/run")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: There is no bucket gs://nowhere")


@pytest.mark.parametrize(
    ("workdir", "sentence"),
    [
        ("gs://closed/run", "gs://closed may not be read"),
        ("gs://read-only/run", r"gs://read-only/run/.* may not be written"),
        ("gs://", "names no bucket"),
    ],
)
def test_a_bucket_that_is_not_ours_is_one_sentence(service, workdir, sentence):
    with pytest.raises(UserError, match=sentence):
        loop.train(dummy_config(), workdir, FakeData(), one_device())


def test_a_service_that_does_not_answer_is_one_sentence(service, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "_SECONDS", 0.2)
    with pytest.raises(UserError, match="gs://unreachable cannot be opened"):
        storage.locate("gs://unreachable/run")


def test_a_bucket_without_a_model_says_so(service):
    with pytest.raises(UserError, match="gs://bucket/empty holds no model"):
        load_model(f"{BUCKET}/empty")
