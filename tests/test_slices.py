"""Several TPU slices are one mesh: only the data axis crosses the network between them."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from anygpt_tokenizers.cli import UserError
from fake_data import FakeData
from test_training import dummy_config

from anygpt_jax import sharding
from anygpt_jax.model.config import DecoderConfig
from anygpt_jax.training import loop

# Two slices of four devices, as a runtime may list them.
DEVICES = [SimpleNamespace(id=index, slice_index=index % 2) for index in range(8)]


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 4}, {"data": -1, "fsdp": 2}, {"data": 4, "tensor": 2}])
def test_only_the_data_axis_crosses_slices(sizes):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "slices": 2, **sizes}
    ordered = sharding.devices_by_slice(DEVICES, 2, 2)
    assert [device.slice_index for device in ordered] == [0] * 4 + [1] * 4
    assert [device.id for device in ordered] == [0, 2, 4, 6, 1, 3, 5, 7]
    mesh = sharding.make_mesh(sizes, jax.devices())
    first, second = np.split(mesh.devices, 2)  # along data
    assert {d.id for d in first.flat} == {0, 1, 2, 3} and {d.id for d in second.flat} == {4, 5, 6, 7}


def test_rules_that_would_gather_parameters_between_slices_are_refused():
    sharding.check_slices(1, sharding.TWO_STEP_RULES)
    sharding.check_slices(2, sharding.DEFAULT_RULES)
    with pytest.raises(UserError, match=r"data, which joins 2 slices"):
        sharding.check_slices(2, sharding.TWO_STEP_RULES)


def test_an_embed_dim_that_both_steps_of_a_gather_do_not_divide_is_named():
    model = DecoderConfig.preset("dummy", vocab_size=256, num_real_rows=250, embed_dim=36)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    sharding.check_divisible(model, mesh, 8)
    with pytest.raises(UserError, match=r"embed_dim = 36 is not a multiple of mesh.data × mesh.fsdp = 8"):
        sharding.check_divisible(model, mesh, 8, rules=sharding.TWO_STEP_RULES)


def test_slices_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"belong to 2 slices but config.mesh.slices = 1"):
        sharding.devices_by_slice(DEVICES, 1, 2)
    with pytest.raises(UserError, match=r"config.mesh.slices = 2 does not divide config.mesh.data = 1"):
        sharding.make_mesh({"data": 1, "fsdp": 8, "slices": 2}, jax.devices())


def test_a_run_on_two_slices_has_the_losses_of_one_device(tmp_path):
    def final_loss(name, **mesh):
        config = dummy_config()
        config.mesh.update(mesh)
        devices = jax.devices()[: mesh.get("data", 1) * mesh.get("fsdp", 1)]
        data = FakeData(batch_size=config.data.batch_size)
        with jax.default_matmul_precision("highest"):
            return loop.train(config, str(tmp_path / name), data=data, devices=devices)["loss"]

    one = final_loss("one", data=1)
    np.testing.assert_allclose(final_loss("two", data=4, fsdp=2, slices=2), one, rtol=1e-5)
