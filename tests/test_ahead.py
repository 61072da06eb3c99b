"""Steps compiled ahead of time: here for simulated devices, and for TPUs where libtpu is."""

import dataclasses
import importlib.util
import json
import math
import os
import types

import jax
import pytest
from test_experiments import SMOKE, call
from test_loop import SETTINGS

from scaling.pretrain import ahead, flops, masking, sharding, step

GENES = 300
RUN = dataclasses.replace(SETTINGS, devices=sharding.DeviceSettings(fsdp=8))


@pytest.fixture
def simulated(monkeypatch):
    """The eight devices of the tests in place of a TPU slice."""
    devices = types.SimpleNamespace(devices=jax.devices())
    monkeypatch.setattr(ahead.topologies, "get_topology_desc", lambda *_: devices)
    return devices.devices[0].device_kind


def test_memory_operations_and_collectives_of_a_step(simulated, monkeypatch):
    monkeypatch.setitem(ahead.MEMORY, simulated, 1e9)
    found = ahead.compile_step(RUN, GENES, "v5e:2x4")
    params = jax.eval_shape(lambda: step.initial_params(0, RUN.model, GENES))
    specs = sharding.specs(params, {"fsdp": 8})
    cut = lambda leaf, spec: leaf.size * 4 // (8 if "fsdp" in spec else 1)  # noqa: E731
    of_params = sum(jax.tree.leaves(jax.tree.map(cut, params, specs)))
    slots = masking.capacity(128, 0.15)
    cells = 2 * (4 * 128 + (4 + 4 + 1) * slots + 4)
    assert 3 * of_params + cells <= found["argument_bytes_per_device"] < 3 * of_params + cells + 64
    # The state is given up: beside it, only what is logged comes out.
    assert 0 < found["output_bytes_per_device"] < 1_000
    parts = ("argument", "temporary", "output", "program")
    needed = sum(found[f"{part}_bytes_per_device"] for part in parts)
    assert needed == found["needed_bytes_per_device"] and found["fits"] is True
    assert found["share_of_memory"] == needed / 1e9
    formula = flops.of_cell(RUN.model, 128, slots, GENES)
    assert found["model_flops"] == 16 * formula.model == 8 * found["model_flops_per_device"]
    assert math.isclose(found["compiler_flops_per_device"], 2 * formula.hardware, rel_tol=0.5)
    assert found["collectives"]["all-gather"]["count"] == 9
    assert (found["devices"], found["cells_per_device"], found["kernels"]) == (8, 2, 0)
    assert json.loads(json.dumps(found)) == found
    lines = ahead.table(found)
    for text in ("8 x cpu, 2 cells per device", "per device: fits", "all-gather               9 "):
        assert text in lines

    monkeypatch.setitem(ahead.MEMORY, simulated, needed - 1.0)
    found = ahead.compile_step(RUN, GENES, "v5e:2x4")
    assert found["fits"] is False and "DOES NOT FIT, 100.0% needed" in ahead.table(found)
    monkeypatch.delitem(ahead.MEMORY, simulated)
    found = ahead.compile_step(RUN, GENES, "v5e:2x4")
    assert found["fits"] is None and "memory of a device not known" in ahead.table(found)


def test_a_step_of_another_encoding_has_values_beside_its_tokens(simulated):
    model = dataclasses.replace(RUN.model, encoding="counts")
    run = dataclasses.replace(RUN, model=model)
    found, ranks = (ahead.compile_step(of, GENES, "v5e:2x4") for of in (run, RUN))
    values, positions = 4 * 2 * 128, 3 * 4 * 128 * RUN.model.width // 8
    direction = 3 * 4 * RUN.model.width  # whole on every device
    more = found["argument_bytes_per_device"] - ranks["argument_bytes_per_device"]
    assert abs(more - (values - positions + direction)) < 64


def test_a_program_that_cannot_be_written_down(simulated, monkeypatch):
    def refuse(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure (hlo_instruction.cc:390)")

    monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
    found = ahead.compile_step(RUN, GENES, "v5e:2x4")
    assert found["collectives"] is None and found["needed_bytes_per_device"] > 0
    assert "not known: the compiler could not write down this program" in ahead.table(found)


def test_a_compiler_that_refuses_for_want_of_memory_is_an_answer(simulated, monkeypatch):
    message = ["RESOURCE_EXHAUSTED: Ran out of memory; used 20G of 15.75G hbm.\nlong list"]

    def refuse(_):
        raise jax.errors.JaxRuntimeError(message[0])

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    found = ahead.compile_step(RUN, GENES, "v5e:2x4")
    assert found["fits"] is False and found["refused"] == message[0].splitlines()[0]
    assert ahead.table(found).splitlines()[1:] == [
        "memory per device: DOES NOT FIT", f"  {found['refused']}"
    ]
    message[0] = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        ahead.compile_step(RUN, GENES, "v5e:2x4")


def test_a_batch_that_the_slice_cannot_share_is_refused(simulated):
    odd = dataclasses.replace(RUN, train=dataclasses.replace(RUN.train, batch=12))
    with pytest.raises(ValueError, match="train.batch 12 is no multiple of 8"):
        ahead.compile_step(odd, GENES, "v5e:2x4")


def test_a_slice_that_there_is_not_is_refused(monkeypatch):
    def unknown(name, platform):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Invalid TPU external name: TPU v9\nat")

    monkeypatch.setattr(ahead.topologies, "get_topology_desc", unknown)
    with pytest.raises(ValueError, match=r"--topology=v9:2x4: .*TPU v9; give kind and shape"):
        ahead.compile_step(RUN, GENES, "v9:2x4")


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU compiler is not installed; pip install --editable '.[tpu]'",
)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("topology", "kind", "memory"), [
    ("v5e:2x4", "TPU v5 lite", 16e9),
    ("v5p:2x2x2", "TPU v5", 95e9),
    ("v6e:2x4", "TPU v6 lite", 32e9),
])
def test_a_step_is_compiled_for_tpus(tmp_path, monkeypatch, topology, kind, memory):
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    arguments = SMOKE, f"--workdir={tmp_path}", f"--topology={topology}", f"--genes={GENES}"
    printed = call("compile_ahead", *arguments, "--config.devices.fsdp=4").stdout
    found = json.loads((tmp_path / "compiled.json").read_text())
    assert printed.strip() == ahead.table(found)
    assert (found["kind"], found["devices"], found["kernels"]) == (kind, 8, 5)
    assert found["fits"] is True and found["memory_bytes_per_device"] == memory
    assert 0 < found["share_of_memory"] < 0.01 < 1e6 < found["compiler_flops_per_device"]
    assert found["collectives"]["all-gather"]["count"] >= 9
    assert found["collectives"]["all-reduce"]["bytes"] > 0
    assert kind in flops.PEAKS


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("arguments", "message"), [
    (("--topology=v9:2x4",), "--topology=v9:2x4: INVALID_ARGUMENT"),
    (("--topology=v5p:4x4x4",), "train.batch 8 is no multiple of 64"),
])
def test_what_cannot_be_compiled_for_leaves_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setitem(os.environ, "TPU_SKIP_MDS_QUERY", "1")
    arguments = SMOKE, f"--workdir={tmp_path / 'none'}", *arguments
    assert message in call("compile_ahead", *arguments, status=2).stderr
    assert not (tmp_path / "none").exists()
