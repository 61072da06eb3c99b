"""Fused attention: splash interpreted against blocked attention, and which kernel a program has."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import AxisType

from configs import default
from kernels.cab import api
from scaling.pretrain import fused_attention, loop
from scaling.pretrain.fused_attention import attend, splash
from scaling.pretrain.sharding import AXES, DeviceSettings
from scaling.settings import Settings

LENGTHS = 300, 130, 1, 0


@pytest.fixture
def interpreted(monkeypatch):
    """Runs splash attention on this machine, in blocks so small that there are several."""
    monkeypatch.setattr(fused_attention, "INTERPRET", True)
    monkeypatch.setattr(fused_attention, "BLOCK", 128)


def draw(queries: int, keys: int = 300, width: int = 16, dtype=np.float32):
    """Query, key, value, a weight of each output, and the mask of cells of `LENGTHS`."""
    rng = np.random.default_rng(0)
    sizes = (queries, keys, keys, queries)
    arrays = [2 * rng.normal(size=(len(LENGTHS), n, 2, width)) for n in sizes]
    mask = np.arange(keys) < np.array(LENGTHS)[:, None]
    return *(jnp.asarray(array, dtype) for array in arrays), mask[:, None, None]


def by(implementation: str, *arrays, mask, rate=0.0):
    return attend(
        *arrays, mask=mask, dropout_rng=jax.random.key(0), dropout_rate=rate, deterministic=False,
        implementation=implementation,
    )


def found(attention, query, key, value, weight, mask):
    """Outputs and gradients, without those of the cell that has no key."""

    def loss(*arrays):
        out = attention(*arrays)
        return (out * weight)[:-1].sum(), out[:-1]

    (_, out), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(query, key, value)
    return [out, *grads]


@pytest.mark.parametrize("queries", [300, 70])
def test_splash_has_the_values_and_gradients_of_blocked_attention(queries, interpreted):
    *arrays, mask = draw(queries)
    length_B = np.array([*LENGTHS[:-1], 1], np.int32)
    ours = found(lambda *of: splash(*of, length_B), *arrays, mask)
    wanted = found(functools.partial(by, "blocked", mask=mask), *arrays, mask)
    for one, other in zip(ours, wanted, strict=True):
        assert np.linalg.norm(other) > 1
        np.testing.assert_allclose(one, other, 1e-4, 1e-4)
    assert all(np.isfinite(array).all() for array in ours)


def test_splash_does_not_read_the_blocks_beyond_a_cell(interpreted):
    query, key, value, _, mask = draw(128, keys=384)
    beyond = np.arange(384)[:, None, None] >= 256
    value = jnp.where(beyond, np.nan, value)  # a masked block is read, 0 * NaN stands in its sum
    lengths = np.array([256, 130, 1, 1], np.int32)
    assert np.isfinite(splash(query, key, value, lengths)).all()
    assert np.isnan(splash(query, key, value, np.full(4, 257, np.int32))).any()


@pytest.mark.slow
def test_splash_in_bfloat16_over_devices_that_share_cells_and_heads(interpreted):
    *arrays, mask = draw(70, dtype=jnp.bfloat16)
    wanted = found(functools.partial(by, "blocked", mask=mask), *arrays, mask)
    for shape in ((2, 2, 2), (4, 1, 1)):
        devices = jax.devices()[: int(np.prod(shape))]
        mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
        with jax.set_mesh(mesh):
            ours = jax.jit(
                lambda *of: found(functools.partial(by, "splash", mask=mask), *of, mask)
            )(*arrays)
        for one, other in zip(ours, wanted, strict=True):
            assert one.dtype == jnp.bfloat16
            error = np.linalg.norm(np.float32(one) - np.float32(other))
            assert error < 0.02 * np.linalg.norm(np.float32(other))


def program(implementation, platform, monkeypatch, rate=0.0, **changes) -> str:
    """Values and gradients as they are lowered for a platform that is not here."""
    monkeypatch.setattr(api, "platform", lambda: platform)
    # Asked of the installed CUDA libraries, of which there are none.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(
        fused_attention_stablehlo, "is_cuda_compute_capability_equal", lambda _: False
    )
    *arrays, mask = draw(70, **{"dtype": jnp.bfloat16, **changes})
    attention = functools.partial(by, implementation, mask=mask, rate=rate)
    lowered = {"tpu": "tpu", "gpu": "cuda", "cpu": "cpu"}[platform]
    traced = jax.jit(lambda *of: found(attention, *of, mask)).trace(*arrays)
    return traced.lower(lowering_platforms=(lowered,)).as_text()


KERNELS = {  # of a program: forward and, where they are several, backward
    "splash": {"tpu_custom_call": 3},
    "cudnn": {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1},
    "blocked": {},
}


@pytest.mark.parametrize(
    ("implementation", "platform", "changes", "runs"),
    [
        ("default", "tpu", {}, "splash"),
        ("default", "gpu", {}, "cudnn"),
        ("default", "cpu", {}, "blocked"),
        ("default", "tpu", {"rate": 0.1}, "blocked"),
        ("default", "gpu", {"rate": 0.1}, "blocked"),
        ("default", "gpu", {"dtype": jnp.float32}, "blocked"),
        ("default", "gpu", {"width": 12}, "blocked"),
        ("blocked", "tpu", {}, "blocked"),
        ("splash", "tpu", {}, "splash"),
        ("cudnn", "gpu", {}, "cudnn"),
    ],
)
def test_the_kernel_that_is_meant_is_the_one_in_the_program(
    implementation, platform, changes, runs, monkeypatch
):
    text = program(implementation, platform, monkeypatch, **changes)
    assert collections.Counter(re.findall(r"custom_call @([\w$]+)", text)) == KERNELS[runs]
    assert ('mask_type\\22: \\22PADDING' in text) == (runs == "cudnn")


def test_a_named_kernel_gives_way_to_none(monkeypatch):
    for changes, remedy in (
        ({"rate": 0.1}, "cannot drop attention weights; set model.attention_dropout=0.0"),
        ({"dtype": jnp.float32}, "multiplies bfloat16; set model.dtype=bfloat16"),
        ({"width": 12}, "heads of a multiple of 8 up to 128, and these have 12"),
        ({"width": 136}, "these have 136; set model.heads"),
    ):
        for name, platform in fused_attention.PLATFORMS.items():
            with pytest.raises(ValueError, match=f"devices.attention '{name}' .*{remedy}"):
                program(name, platform, monkeypatch, **changes)


def run_settings(attention: str, **model):
    config = default.get_config()
    config.model.update({"attention_dropout": 0.0, "dtype": "bfloat16", **model})
    config.devices.attention = attention
    return Settings.from_config(config).run


def test_settings_refuse_what_a_kernel_cannot_do_before_anything_runs():
    assert run_settings("splash").devices.attention == "splash"
    for model, remedy in (
        ({"attention_dropout": 0.02}, "set model.attention_dropout=0.0"),
        ({"dtype": "float32"}, "set model.dtype=bfloat16"),
        ({"heads": 1}, "these have 256; set model.heads"),
    ):
        for name in ("cudnn", "splash"):
            with pytest.raises(ValueError, match=remedy):
                run_settings(name, **model)
        assert run_settings("default", **model) and run_settings("blocked", **model)
    with pytest.raises(ValueError, match="devices.attention 'flash'; one of"):
        DeviceSettings(attention="flash")
    with pytest.raises(ValueError, match="numbers of devices.. must be at least 1"):
        DeviceSettings(fsdp=0)


@pytest.mark.parametrize(("name", "platform"), fused_attention.PLATFORMS.items())
def test_a_kernel_of_another_platform_is_refused_at_once(name, platform, tiny_corpus, tmp_path):
    message = f"'{name}' runs on {platform.upper()} alone, and this is CPU; leave it at 'default'"
    with pytest.raises(ValueError, match=message):
        loop.pretrain(run_settings(name), tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_kernel_is_no_part_of_a_run_but_dropout_is():
    plain, dropped = run_settings("default"), run_settings("default", attention_dropout=0.1)
    assert plain.hash({}) == run_settings("splash").hash({}) != dropped.hash({})
