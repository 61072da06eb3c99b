"""What the bench compares with, how it measures, and that the shapes are the real ones."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, quickstart
from kernels.cab import bench, cab_loss, shapes
from scaling.pretrain import masking
from scaling.pretrain.bench import one_cell, steps
from scaling.settings import Settings


def test_shapes_are_those_of_the_models():
    for shape in shapes.SHAPES.values():
        assert shape.M == masking.capacity(shape.L, 0.15)
        assert shape.masked == round(shape.L * 0.15)
    for config, name in ((default, "gf-v1-10m"), (quickstart, "quickstart")):
        model = Settings.from_config(config.get_config()).run.model
        assert (model.length, model.width) == (shapes.SHAPES[name].L, shapes.SHAPES[name].D)


def test_the_masked_slots_alone_give_the_published_form_over_all_positions():
    rng = np.random.default_rng(0)
    B, L, V, D = 2, 11, 40, 6
    with jax.enable_x64(True):
        tokens = np.stack([rng.permutation(V)[:L] for _ in range(B)])
        selected = rng.random((B, L)) < 0.4
        selected[0, :2], selected[1, :2] = True, False
        sizes = (B, L, D), (V, D), V
        hidden, embedding, bias = (jnp.asarray(rng.normal(size=size)) for size in sizes)
        M = int(selected.sum(1).max()) + 1
        slots, labels = np.zeros((B, M), int), np.full((B, M), -1)
        known = np.zeros((B, V), bool)
        for cell in range(B):
            at = np.flatnonzero(selected[cell])
            slots[cell, : len(at)], labels[cell, : len(at)] = at, tokens[cell, at]
            known[cell, tokens[cell, ~selected[cell]]] = True

        def literal(hidden, embedding, bias):
            return jnp.stack(bench.literal_cab(hidden, embedding, bias, tokens, selected))

        def ours(hidden, embedding, bias):
            states = jnp.take_along_axis(hidden, slots[..., None], 1)
            return jnp.stack(cab_loss(states, embedding, bias, labels, known)[:2])

        arrays = hidden, embedding, bias
        np.testing.assert_allclose(ours(*arrays), literal(*arrays), 1e-12)
        for found, wanted in zip(
            jax.jacobian(ours, (0, 1, 2))(*arrays), jax.jacobian(literal, (0, 1, 2))(*arrays),
            strict=True,
        ):
            assert np.linalg.norm(wanted) > 1e-2
            np.testing.assert_allclose(found, wanted, 1e-9, 1e-12)


def _tiny():
    config = quickstart.get_config()
    config.model.length, config.model.layers, config.model.width = 24, 1, 8
    config.model.feed_forward = 8
    return Settings.from_config(config).run


def test_every_case_runs_and_the_two_heads_of_a_loss_agree(monkeypatch):
    settings = _tiny()
    logged = {name: case().run() for name, case in steps(settings, 60, 8).items()}
    assert logged["mlm"]["sums"].similarity == 0 < logged["cab"]["sums"].similarity
    values = {name: case().run()[0] for name, case in one_cell(settings, 60).items()}
    np.testing.assert_allclose(values["literal cab"], values["cab"], 1e-5)
    np.testing.assert_allclose(values["full-length mlm"], values["mlm"], 1e-5)
    assert abs(values["cab"] - values["mlm"]) > 0.1
    shape = shapes.Shape(L=24, M=8, masked=4, V=60, D=8)
    monkeypatch.setattr(shapes, "SHAPES", {"tiny": shape})
    (_, both), (_, one) = bench.heads(2).items()
    assert list(both) == ["mlm, blocked", "cab, blocked"]
    assert list(one) == ["cab, reference", "cab, blocked"]
    assert both["mlm, blocked"]().run()[0] < both["cab, blocked"]().run()[0]
    np.testing.assert_allclose(*(case().run()[0] for case in one.values()), 1e-5)


def test_cases_take_turns_and_ratios_are_to_the_first(capsys):
    calls = []

    def case(name):
        compiled = jax.jit(jnp.sin).lower(1.0).compile()
        return lambda: bench.Program(compiled, lambda: calls.append(name) or compiled(1.0))

    report = {"process_before": 1, "process_peak": 8, "temporary": 2}
    alone = [sys.executable, "-c", f"print({json.dumps(json.dumps(report))})"]
    found = bench.measure({"group": {"a": case("a"), "b": case("b")}}, 2, alone)["group"]
    assert calls == ["a", "b"] * 3
    assert found["a"]["ratios"] == {"seconds": 1, "process_peak": 1, "temporary": 1}
    seconds = {name: row["seconds"]["least"] for name, row in found.items()}
    assert found["b"]["ratios"]["seconds"] == seconds["b"] / seconds["a"]
    assert found["b"]["bytes"] == report
    with pytest.raises(RuntimeError, match="group: a: .*no memory left"):
        alone = [sys.executable, "-c", "raise SystemExit('no memory left')"]
        bench.measure({"group": {"a": case("a")}}, 1, alone)


@pytest.mark.slow
def test_memory_of_the_blocked_head_in_a_fresh_process():
    """At V1's shape and one cell: a few arrays of M x 512, and a third of the reference's."""

    def bytes_of(implementation):
        group, case = "head of gf-v1-10m, 1 cell", f"cab, {implementation}"
        command = [sys.executable, "-m", "experiments.bench", group, case]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    blocked, reference = bytes_of("blocked"), bytes_of("reference")
    shape = shapes.SHAPES["gf-v1-10m"]
    of_gradients = 4 * shape.V * shape.D
    # Arrays over the slots and a block of 512 genes, and the gradient by the embedding once more.
    assert blocked["temporary"] - 2 * of_gradients < 12 * 4 * shape.M * 512
    grown = [of["process_peak"] - of["process_before"] for of in (blocked, reference)]
    assert grown[0] < grown[1] / 3
