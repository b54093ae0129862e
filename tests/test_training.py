"""Training: meshes agree, runs repeat bit for bit, weights weigh, and a run that ends early says why."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from anygpt_tokenizers.cli import UserError
from fake_data import FakeData, small_vocabulary
from test_packing import pack

from anygpt_jax import allocator, sharding
from anygpt_jax.checkpoint import JointCheckpoint, abstract_params
from anygpt_jax.model.decoder import init_params
from anygpt_jax.training import defaults, ending, loop
from anygpt_jax.training.metrics_log import read_metrics
from anygpt_jax.training.optimizer import SPIKE_WARMUP, make_optimizer, make_schedule, skip_spikes
from anygpt_jax.training.state import abstract_state, init_state
from anygpt_jax.training.step import Objective, batch_loss, compile_train_step


def dummy_config(**changes):
    """A run of seconds; a keyword such as optimizer__name sets the field optimizer.name."""
    config = defaults.get_config()
    config.model.preset = "dummy"
    config.steps, config.log_every, config.data.batch_size = 20, 5, 8
    config.checkpoint.every = 10
    config.optimizer.learning_rate = 1e-2
    config.mesh.data = 1
    config.peak_flops = 1e12
    for name, value in changes.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


def curve(workdir):
    """The logged rows without what the clock decides."""
    return [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in read_metrics(str(workdir))
    ]


def newest_step(workdir):
    """The step of the newest finished checkpoint on a disk."""
    return max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def assert_resumed(before, workdir, step):
    """A run went on from its checkpoint of `step` and did not start anew.

    What it had logged up to there (`before`: the rows then) still stands, with what the clock decided.
    """
    kept = [row for row in before if row["step"] <= step]
    assert kept and [row for row in read_metrics(str(workdir)) if row["step"] <= step] == kept


def one_device():
    return jax.devices()[:1]


def losses_of(config, mesh_shape, steps, accumulation=1):
    """The loss of every step on a mesh."""
    data = FakeData(batch_size=config.data.batch_size)
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = sharding.make_mesh(dict(zip(sharding.MESH_AXES, mesh_shape, strict=True)), devices)
    objective = Objective.from_config(config, data.vocabulary)
    model = loop.model_config(config.model, data.vocabulary)
    optimizer, rate = make_optimizer(config.optimizer, config.steps)
    abstract = abstract_state(model, optimizer, objective.zero_sums(), mesh, config.rules)
    state = init_state(model, optimizer, 0, abstract)
    shape = (config.data.batch_size, data.seq_len)
    step = compile_train_step(
        model, optimizer, rate, objective, mesh, config.rules, abstract, shape, accumulation
    )
    losses = []
    for index in range(steps):
        state, record = step(state, sharding.put_batch(data.batch(index), mesh))
        losses.append(float(record["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def single_device_losses():
    with jax.default_matmul_precision("highest"):
        return losses_of(dummy_config(), (1, 1, 1), 20)[0]


@pytest.mark.parametrize("mesh_shape", [(2, 2, 2), (8, 1, 1)])
def test_every_mesh_has_the_loss_of_one_device(single_device_losses, mesh_shape):
    with jax.default_matmul_precision("highest"):
        losses, state = losses_of(dummy_config(), mesh_shape, 20)
    np.testing.assert_allclose(losses, single_device_losses, rtol=1e-5)
    kernel = state.params["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // mesh_shape[1]
    assert kernel.sharding.shard_shape(kernel.shape)[2] == kernel.shape[2] // mesh_shape[2]


def test_accumulation_changes_no_loss(single_device_losses):
    with jax.default_matmul_precision("highest"):
        losses, _ = losses_of(dummy_config(), (2, 1, 1), 6, accumulation=4)
    np.testing.assert_allclose(losses, single_device_losses[:6], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_optimizers_learn(name):
    losses, _ = losses_of(dummy_config(optimizer__name=name), (1, 1, 1), 20)
    assert losses[-1] < 0.6 * losses[0]


def test_optimizer_state_is_divided_like_the_parameters():
    config, vocabulary = dummy_config(optimizer__name="muon"), small_vocabulary()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    objective = Objective.from_config(config, vocabulary)
    optimizer, _ = make_optimizer(config.optimizer, config.steps)
    model = loop.model_config(config.model, vocabulary)
    state = abstract_state(model, optimizer, objective.zero_sums(), mesh, config.rules)
    kernel = state.params["layers"]["mlp"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 32)
    mirrors = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == kernel.shape]
    assert mirrors
    assert all(leaf.sharding == kernel.sharding for leaf in mirrors)


# ------------------------------------------------------------------------------------------- objective


def test_weights_multiply_modality_direction_and_role():
    config = dummy_config(prompt_loss_weight=0.25, loss_weights__image=3.0)
    config.direction_weights = {"text->image": 2.0}
    vocabulary = small_vocabulary()
    objective = Objective.from_config(config, vocabulary)
    data = FakeData(batch_size=4)
    model = loop.model_config(config.model, vocabulary)
    params, batch = init_params(model, 0), data.batch(0)
    total, sums = jax.jit(lambda p: batch_loss(p, batch, model, objective))(params)

    kinds = vocabulary.modality_table()[batch["targets"]]
    to_image = batch["directions"] == vocabulary.directions().index("text->image")
    weights = np.array([0, 0.25, 1.0])[batch["target_roles"]]
    weights = weights * np.where(to_image, 2.0, 1.0) * np.where(kinds == 1, 3.0, 1.0)
    np.testing.assert_allclose(sums.objective, [float(total), weights.sum()], rtol=1e-5)
    answers = batch["target_roles"] == 2
    for index in range(4):
        np.testing.assert_allclose(sums.modalities[index, 2], (answers & (kinds == index)).sum())
        np.testing.assert_allclose(sums.modalities[index, 3], weights[kinds == index].sum(), rtol=1e-5)
    for index in range(7):
        count = (answers & (batch["directions"] == index)).sum()
        np.testing.assert_allclose(sums.directions[index, 2], count)
    np.testing.assert_allclose(sums.modalities[:, 0].sum(), sums.directions[:, 0].sum(), rtol=1e-5)


def test_an_unknown_direction_is_named():
    config = dummy_config()
    config.direction_weights = {"image->image": 2.0}
    with pytest.raises(UserError, match="image->image"):
        Objective.from_config(config, small_vocabulary())


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_the_schedule_rises_to_its_peak_and_falls_to_its_end(kind):
    schedule = make_schedule(2.0, steps=100, kind=kind, warmup=0.1, final=0.1)
    rates = [float(schedule(step)) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == pytest.approx(2.0) == rates[10]
    assert rates[-1] == pytest.approx(0.2, abs=0.03)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))


# ------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize(("field", "multiple"), [("skip_spikes", 3.0), ("skip_loss_spikes", 1.5)])
def test_a_spike_is_skipped_and_said_and_leaves_parameters_and_optimizer_alone(
    tmp_path, capsys, field, multiple
):
    class Data(FakeData):
        def batch(self, step):
            batch = super().batch(step)
            if step == SPIKE_WARMUP + 5:
                batch["targets"] = (
                    batch["targets"] + 13
                ) % self.vocabulary.size  # what it learnt is now wrong
            return batch

    def run(name, steps, multiple):
        config = dummy_config(log_every=1, checkpoint__every=steps, steps=steps)
        config.optimizer.update({"schedule": "linear", "final": 1.0, "warmup": 0.0, field: multiple})
        loop.train(config, str(tmp_path / name), Data(), one_device())
        return curve(tmp_path / name)

    steps = SPIKE_WARMUP + 8
    unharmed, harmed = run("skipping", steps, multiple), run("not", steps, 0.0)
    assert f"step {SPIKE_WARMUP + 6}: skipped" in capsys.readouterr().out
    before, at, after = (unharmed[SPIKE_WARMUP + i]["loss"] for i in (4, 5, 6))
    assert at > 3 * before and after < 1.5 * before
    assert harmed[SPIKE_WARMUP + 6]["loss"] > after


def test_one_spike_hardly_moves_the_mean_and_a_lasting_change_is_learnt():
    optimizer = skip_spikes(optax.sgd(lambda step: 1.0 + step), 5.0, 0.0)
    state = optimizer.init(jnp.zeros(1))

    def skipped(norm):
        nonlocal state
        _, state = optimizer.update(jnp.full(1, norm), state, value=jnp.zeros(()))
        return bool(state.skipped)

    assert not any(skipped(1.0) for _ in range(200))
    assert skipped(1e6)
    assert skipped(5.5) and not any(skipped(1.0) for _ in range(50))
    left_out = [skipped(10.0) for _ in range(200)]
    assert left_out[0] and 1 < sum(left_out) < 15 and not any(left_out[15:])
    (place,) = (part.count for part in state.inner if isinstance(part, optax.ScaleByScheduleState))
    assert place == 200 + 2 + 50 + 200  # the logged learning rate is the one that is applied


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_parameters_in_bfloat16_are_trained_in_parts_and_resumed(tmp_path, name):
    kept = {"optimizer__name": name, "optimizer__accumulation": 2, "log_every": 1, "checkpoint__every": 3}
    for steps, workdir in [(6, "whole"), (3, "parts"), (6, "parts")]:
        config = dummy_config(**kept, steps=steps, model__param_dtype="bfloat16")
        config.optimizer.update({"schedule": "linear", "final": 1.0, "warmup": 0.0})
        loop.train(config, str(tmp_path / workdir), FakeData(), one_device())
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    losses = [row["loss"] for row in curve(tmp_path / "whole")]
    assert losses[-1] < losses[0]


def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(tmp_path):
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        loop.train(dummy_config(seed=seed), str(tmp_path / name), FakeData(), one_device())
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert curve(tmp_path / "a") != curve(tmp_path / "c")
    assert [row["step"] for row in curve(tmp_path / "a")] == [5, 10, 15, 20]


def test_an_evaluation_is_logged_when_it_is_due_whatever_log_every_says(tmp_path):
    pack(tmp_path, [7, 9, 12, 14] * 20)

    def run(name, log_every):
        packed = str(tmp_path / "packed")
        config = dummy_config(steps=13, log_every=log_every, checkpoint__every=7, pack__seq_len=32)
        config.data.dir = packed
        config.eval.update({"dir": packed, "every": 3, "batches": 1})
        loop.train(config, tmp_path / name, devices=one_device())
        return {row.pop("step"): row for row in curve(tmp_path / name)}

    each, rows = run("each", 1), run("run", 2)
    assert list(rows) == [2, 3, 4, 6, 8, 9, 10, 12, 13]
    assert [step for step, row in rows.items() if "eval/loss" in row] == [3, 6, 9, 12, 13]
    # Its row holds what was not logged yet, as every other's does.
    assert all(rows[step] == each[step] for step in (3, 4, 9, 10, 13))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "13")
    assert run("run", 2) == rows  # resumed from step 7, whose sums are no row's yet


def test_where_there_is_no_directory_to_evaluate_on_nothing_is_evaluated(tmp_path):
    rows = [
        loop.train(dummy_config(steps=4, eval__every=every), tmp_path / str(every), FakeData(), one_device())
        for every in (0, 3)
    ]
    assert rows[0].keys() == rows[1].keys() and [row["step"] for row in curve(tmp_path / "3")] == [4]


def test_a_finished_run_that_is_run_again_does_nothing(tmp_path):
    first = loop.train(dummy_config(), str(tmp_path), FakeData(), one_device())
    again = loop.train(dummy_config(), str(tmp_path), FakeData(), one_device())
    assert first == again
    assert len(curve(tmp_path)) == 4


def test_the_log_has_losses_per_modality_and_direction_and_speeds(tmp_path):
    row = loop.train(dummy_config(), str(tmp_path), FakeData(), one_device())
    for name in ["text", "image", "speech", "music", "image->text", "text->music"]:
        assert 0 <= row[f"accuracy/{name}"] <= 1
        assert row[f"loss/{name}"] > 0
    for name in ["tokens_per_s", "step_s", "data_wait_s", "mfu"]:
        assert row[f"speed/{name}"] > 0
    assert [row["speed/checkpoint_s"] > 0 for row in read_metrics(str(tmp_path))] == [
        False,
        False,
        True,
        False,
    ]
    assert sum(row[f"share/{name}"] for name in ["text", "image", "speech", "music"]) == pytest.approx(1)
    assert any(name.startswith("events") for name in os.listdir(tmp_path / "tensorboard"))


def test_a_checkpoint_goes_from_8_to_4_to_1_devices(tmp_path):
    eight, four, one = {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "tensor": 2}, {}
    for count, (mesh, steps) in zip([8, 4, 1], [(eight, 10), (four, 20), (one, 30)], strict=True):
        before = read_metrics(str(tmp_path))
        config = dummy_config(optimizer__schedule="linear")
        config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, **mesh})
        config.steps = steps
        loop.train(config, str(tmp_path), FakeData(), jax.devices()[:count])
        if before:
            assert_resumed(before, tmp_path, steps - 10)
    checkpoint = JointCheckpoint(tmp_path)
    model = loop.model_config(dummy_config().model, small_vocabulary())
    trees = []
    for mesh_sizes, count in [(eight, 8), (four, 4), (one, 1)]:
        mesh = sharding.make_mesh({"data": 1, **mesh_sizes}, jax.devices()[:count])
        abstract = abstract_params(model, mesh, sharding.DEFAULT_RULES)
        tree = checkpoint.restore_params(20, abstract)
        assert all(
            leaf.sharding == wanted.sharding
            for leaf, wanted in zip(jax.tree.leaves(tree), jax.tree.leaves(abstract), strict=True)
        )
        trees.append(jax.device_get(tree))
    checkpoint.close()
    jax.tree.map(np.testing.assert_array_equal, trees[0], trees[1])
    jax.tree.map(np.testing.assert_array_equal, trees[0], trees[2])
    assert [row["step"] for row in curve(tmp_path)] == [5, 10, 15, 20, 25, 30]
    assert curve(tmp_path)[-1]["loss"] < curve(tmp_path)[0]["loss"]


# ------------------------------------------------------------------------------------------- how runs end


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    class Data(FakeData):
        def batch(self, step):
            batch = super().batch(step)
            batch["directions"][:] = 1 if step == 13 else 2
            return batch

    config = dummy_config()
    config.direction_weights = {"image->text": 3e38}  # its sums overflow
    with pytest.raises(ending.DivergedError, match=r"Step 14: .* checkpoint of step 10 stands"):
        loop.train(config, str(tmp_path), Data(), one_device())
    checkpoint = JointCheckpoint(tmp_path)
    assert checkpoint.all_steps() == [10]
    checkpoint.close()
    assert [row["step"] for row in curve(tmp_path)] == [5, 10]


RUNNER = """
    import sys, time
    sys.path.insert(0, {tests!r})
    import jax
    from fake_data import FakeData
    from test_training import dummy_config
    from anygpt_jax.training import ending, loop

    class SlowData(FakeData):
        def iterator(self, start_step, prefetch):
            for batch in super().iterator(start_step, prefetch):
                time.sleep(0.05)
                yield batch

    config = dummy_config(steps=60, checkpoint__every=7)
    sys.exit(ending.exit_code(lambda: loop.train(config, sys.argv[1], SlowData(), jax.devices()[:1])))
"""


@pytest.fixture
def start_run():
    """A function that starts a run of 60 steps in a directory, as a process of its own."""
    processes = []

    def start(workdir):
        script = textwrap.dedent(RUNNER).format(tests=os.path.dirname(__file__))
        command = [sys.executable, "-c", script, str(workdir)]
        processes.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stderr.close()


def wait_for_step(process, workdir, step, seconds=600):
    """Returns once the log has reached `step`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rows = read_metrics(str(workdir))
        if rows and rows[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"the run did not reach step {step}")


def test_a_killed_run_and_a_terminated_run_continue_bit_for_bit(tmp_path, start_run):
    killed = start_run(tmp_path / "killed")
    wait_for_step(killed, tmp_path / "killed", 25)
    killed.kill()
    killed.wait()
    before, step = read_metrics(str(tmp_path / "killed")), newest_step(tmp_path / "killed")

    whole = start_run(tmp_path / "whole")
    terminated = start_run(tmp_path / "killed")
    wait_for_step(terminated, tmp_path / "killed", 40)
    terminated.send_signal(signal.SIGTERM)
    message = terminated.communicate()[1]
    assert terminated.returncode == 128 + signal.SIGTERM
    assert_resumed(before, tmp_path / "killed", step)
    before, step = read_metrics(str(tmp_path / "killed")), newest_step(tmp_path / "killed")
    assert f"Stopped by SIGTERM, saved at step {step}" in message

    for process in [start_run(tmp_path / "killed"), whole]:
        errors = process.communicate()[1]
        assert process.returncode == 0, errors
    assert_resumed(before, tmp_path / "killed", step)
    assert len(curve(tmp_path / "whole")) == 12
    assert curve(tmp_path / "whole") == curve(tmp_path / "killed")
    ends = []
    for name in ["whole", "killed"]:
        checkpoint = JointCheckpoint(tmp_path / name)
        model = loop.model_config(dummy_config().model, small_vocabulary())
        abstract = abstract_params(model, None, sharding.DEFAULT_RULES)
        ends.append(jax.device_get(checkpoint.restore_params(60, abstract)))
        checkpoint.close()
    jax.tree.map(np.testing.assert_array_equal, *ends)


def test_a_training_takes_most_of_a_gpu_unless_it_is_told_how_much(monkeypatch):
    names = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"
    for told in names:
        for name in names:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(told, "0.5")
        allocator.take_most_of_gpus()
        assert {name: os.environ.get(name) for name in names} == dict.fromkeys(names) | {told: "0.5"}
    monkeypatch.delenv(names[1])
    allocator.take_most_of_gpus()
    assert float(os.environ[names[0]]) == allocator.GPU_SHARE
    monkeypatch.delenv(names[0])
