"""Classes of annotations, predicted beside masked genes: their loss, gradients and labels."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from test_build import SETTINGS, _write

from configs import smoke
from scaling.corpus import build
from scaling.pretrain import loop, sharding, step, supervision
from scaling.pretrain.batches import Batches
from scaling.pretrain.plan import Plan
from scaling.pretrain.supervision import SupervisionSettings
from scaling.pretrain.writer import read_rows
from scaling.settings import Settings
from scaling.sweeps import jobs

TYPES = np.array(["B", "T", "CD4 T", ""])
OBO = """format-version: 1.2

[Term]
id: CL:1
name: T

[Term]
id: CL:2
name: CD4 T
is_a: CL:1 ! T

[Term]
id: CL:3
name: B
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Cells of three types, whose genes tell B from T, some without a label; and of two sexes."""
    folder = tmp_path_factory.mktemp("supervised")
    rng = np.random.default_rng(0)
    of_type = rng.integers(0, 4, 120)
    rates = np.array([[4, 0.2], [0.2, 4], [0.2, 4], [4, 0.2]])[of_type]
    counts = rng.poisson(np.repeat(rates, 12, axis=1)) + np.eye(120, 24, dtype=int)
    labels = {"kind": TYPES[of_type], "sex": np.array(["f", "m"])[rng.integers(0, 2, 120)]}
    _write(folder / "cells.h5ad", counts, **labels)
    (folder / "cl.obo").write_text(OBO)
    given = {"h5ad": str(folder / "cells.h5ad"), "gene_column": "symbol", "cell_type": "kind"}
    return build.build(dataclasses.replace(SETTINGS, **given), folder / "corpus")


def run_of(micro_batches=1, steps=1, **fields) -> step.RunSettings:
    config = smoke.get_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward=16, length=24, dropout=0.0,
                        attention_dropout=0.0)  # fmt: skip
    config.objective.name, config.train.steps, config.train.batch = "mlm", steps, 8
    config.train.cells, config.train.learning_rate, config.train.log_every = 0, 1e-2, 1
    config.devices.micro_batches = micro_batches
    with config.unlocked():
        config.supervision.update(fields)
    return Settings.from_config(config).run


def batch_of(corpus, run) -> tuple:
    rows = np.flatnonzero(corpus.obs["split"] == "pool")
    found = supervision.classes(run.supervision, corpus)
    plan, how = Plan(len(rows), 8, 1), (run.masking, 0, None, "ranks", found)
    return Batches(corpus, rows, plan, 5, (24,), *how)[0], rows[plan.at(0)[0]], found


def trained(corpus, run, cells, classes, scale=4.0):
    sizes = tuple((column, len(of.names)) for column, of in classes.items())
    state = step.initial_state(np.uint32(0), run.program(), 5, len(corpus.vocabulary), sizes)
    state = state.replace(params=jax.tree.map(lambda leaf: leaf * scale, state.params))
    return state, *step.train_step(
        jax.tree.map(jnp.copy, state), cells, np.uint32(0), run.program(), 5
    )


def fits_of(classes, *labels) -> np.ndarray:
    of = classes["cell_type"]
    return of.fits[of.numbers(pd.Series(labels))]


def test_a_label_fits_itself_or_with_the_ontology_its_kinds(corpus):
    found = supervision.classes(SupervisionSettings(("cell_type", "sex")), corpus)
    assert found["cell_type"].names == ("B", "CD4 T", "T") and found["sex"].names == ("f", "m")
    fits = fits_of(found, "T", "", "unseen", "B")
    assert fits.tolist() == [[False, False, True], [False] * 3, [False] * 3, [True, False, False]]
    (folder := corpus.folder.parent)
    table = folder / "none.csv"
    table.write_text("label,term\n")
    known = SupervisionSettings(("cell_type",), 0.1, str(folder / "cl.obo"), str(table))
    fits = fits_of(supervision.classes(known, corpus), "T", "CD4 T", "B")
    assert fits.tolist() == [[False, True, True], [False, True, False], [True, False, False]]
    table.write_text("label,term\nCD4 T,\n")  # of no term: a class of its own
    fits = fits_of(supervision.classes(known, corpus), "T", "CD4 T")
    assert fits.tolist() == [[False, False, True], [False, True, False]]
    table.write_text("label,term\nCD4 T,\nB,\nT,\n")
    with pytest.raises(ValueError, match="has a term for none of the cell types B, CD4 T, T"):
        supervision.classes(known, corpus)


def test_sums_are_those_of_the_labelled_cells_by_hand():
    rng = np.random.default_rng(0)
    states, tokens = rng.normal(size=(4, 6, 5)), rng.integers(2, 9, (4, 6))
    tokens[1, 3:] = 0
    heads = {"sex": {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)}}
    fits = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]], bool)
    found = supervision.sums(heads, jnp.asarray(states), jnp.asarray(tokens), {"sex": fits})["sex"]
    nats, right = 0.0, 0
    for cell in (0, 1, 3):
        real = tokens[cell] > 0
        logits = states[cell][real].mean(0) @ heads["sex"]["kernel"] + heads["sex"]["bias"]
        p = np.exp(logits) / np.exp(logits).sum()
        nats -= np.log(p[fits[cell]].sum())
        right += fits[cell][p.argmax()]
    assert float(found["cross_entropy"]) == pytest.approx(nats, rel=1e-5)
    assert int(found["right"]) == right

    def nats_of(states):
        return supervision.sums(heads, states, tokens, {"sex": fits})["sex"]["cross_entropy"]

    gradient = jax.grad(nats_of)(jnp.asarray(states))
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[2].any()
    assert not np.asarray(gradient)[1, 3:].any()


def test_the_loss_gets_the_weighted_means_and_the_encoder_their_gradient(corpus):
    columns = ("cell_type", ("sex", 0.5))
    run, plain = run_of(columns=columns, weight=2.0), run_of()
    cells, rows, classes = batch_of(corpus, run)
    unlabelled = corpus.obs["cell_type"].to_numpy()[rows] == ""
    np.testing.assert_array_equal(~cells.fits["cell_type"].any(1), unlabelled)
    assert 0 < unlabelled.sum() < 8
    before, state, logged = trained(corpus, run, cells, classes)
    _, other, of_plain = trained(corpus, plain, cells._replace(fits=None), {})
    means = {
        column: float(sums["cross_entropy"] / logged["labelled"][column])
        for column, sums in logged["classes"].items()
    }
    assert int(logged["labelled"]["cell_type"]) == 8 - unlabelled.sum()
    wanted = of_plain["loss"] + 2.0 * means["cell_type"] + 0.5 * means["sex"]
    assert float(logged["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    kernel = ("layer_0", "expand", "kernel")
    moved, moved_plain = (
        of.params[kernel[0]][kernel[1]][kernel[2]] - before.params[kernel[0]][kernel[1]][kernel[2]]
        for of in (state, other)
    )
    assert np.abs(moved - moved_plain).max() > 1e-5
    assert set(state.heads) == {"cell_type", "sex"} and "classes" not in state.params
    assert np.abs(state.heads["sex"]["kernel"] - before.heads["sex"]["kernel"]).min() > 0
    assert other.heads == {} and "classes" in logged["param_norms"]
    parts = trained(corpus, run_of(micro_batches=4, columns=columns, weight=2.0), cells, classes)
    np.testing.assert_allclose(parts[2]["loss"], logged["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        parts[1].heads, state.heads,
    )  # fmt: skip


def test_eight_devices_add_up_to_one(corpus):
    run = run_of(columns=("cell_type",), weight=2.0)
    cells, _, classes = batch_of(corpus, run)
    _, alone, logged = trained(corpus, run, cells, classes)
    mesh = sharding.make_mesh(sharding.DeviceSettings(fsdp=2), 8)
    with jax.set_mesh(mesh):
        _, shared, of_shared = trained(corpus, run, sharding.shard_batch(cells, mesh), classes)
    assert float(of_shared["loss"]) == pytest.approx(float(logged["loss"]), rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        shared.heads, alone.heads,
    )  # fmt: skip


def test_a_run_learns_classes_resumes_to_the_bit_and_embeds_as_any(corpus, tmp_path, monkeypatch):
    run = run_of(steps=30, columns=("cell_type",), weight=1.0)
    run = dataclasses.replace(run, train=dataclasses.replace(run.train, checkpoint_every=10))
    loop.pretrain(run, corpus, tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    told = [row["train/cell_type_cross_entropy"] for row in rows if "train/loss" in row]
    assert np.mean(told[-5:]) < 0.8 * np.mean(told[:5])
    held = json.loads((tmp_path / "whole" / "settings.json").read_text())
    assert held["classes"] == {"cell_type": ["B", "CD4 T", "T"]}
    assert held["supervision"]["columns"] == ["cell_type"]

    class Stop(Exception):
        pass

    real, steps = loop.train_step, []

    def killed(*given):
        steps.append(1)
        if len(steps) > 23:
            raise Stop
        return real(*given)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(Stop):
        loop.pretrain(run, corpus, tmp_path / "cut")
    monkeypatch.setattr(loop, "train_step", real)
    loop.pretrain(run, corpus, tmp_path / "cut")
    params = [
        loop.load_params(tmp_path / name, run.model, len(corpus.vocabulary))
        for name in ("whole", "cut")
    ]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert "classes" not in params[0]


@pytest.mark.parametrize(("fields", "told"), [
    ({"columns": ("donor",)}, r"supervision.columns is \('donor',\); give distinct ones of"),
    ({"columns": ("sex", ("sex", 0.1))}, "give distinct ones of"),
    ({"columns": ("sex",), "weight": 0.0}, "supervision.columns gives sex the weight 0"),
])  # fmt: skip
def test_wrong_settings_are_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        run_of(**fields)


def test_a_column_without_labels_is_refused(corpus):
    message = r"'tissue', .* are \[\], of which there must be two; .* data.tissue"
    with pytest.raises(ValueError, match=message):
        supervision.classes(SupervisionSettings(("tissue",)), corpus)


def test_supervision_is_an_axis():
    config = smoke.get_config()
    config.study.supervisions = ((), ("cell_type", ("sex", 0.01)))
    settings = Settings.from_config(config)
    trained = [job for job in jobs.plan(settings) if job.steps]
    names = {job.supervision for job in trained}
    assert names == {"no", "cell_type+sex0.01"}
    for job in trained:
        run = jobs.run_settings(settings, job)
        assert bool(run.supervision.columns) == (job.supervision != "no")
        assert ("cell_type+sex0.01_labels" in job.name) == (job.supervision != "no")
    assert len({job.name for job in trained}) == len(trained)
    config.study.supervisions = ("cell_type",)
    with pytest.raises(ValueError, match="study.supervisions has 'cell_type'; each value is a"):
        jobs.plan(Settings.from_config(config))
