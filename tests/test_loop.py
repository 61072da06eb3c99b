"""Runs that stop and go on to the bit, on many devices as on one, and records that tell of it."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import re
import signal
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest

from scaling.evaluate import masked_genes
from scaling.pretrain import checkpoint, loop, masking, objectives, sharding
from scaling.pretrain.loop import RunSettings, pretrain
from scaling.pretrain.model import ModelSettings
from scaling.pretrain.optimizer import TrainSettings
from scaling.pretrain.plan import Plan
from scaling.pretrain.writer import METRICS, read_rows

STEPS, EVERY = 20, 7  # a checkpoint at a step without a held-out loss, and at one with
SETTINGS = RunSettings(
    ModelSettings(
        layers=1, width=16, heads=2, feed_forward=32, length=128, activation="relu", dropout=0.1,
        norm_epsilon=1e-12, attention_dropout=0.1,
    ),
    masking.MaskingSettings(rate=0.15, mask_share=0.8, random_share=0.1, draw_special=False),
    objectives.ObjectiveSettings("cab", "recalibrated", "cosine", 0.15, "masked_pairs"),
    TrainSettings(
        cells=60, steps=STEPS, epochs=0.0, batch=16, learning_rate=0.02, warmup=0.1,
        weight_decay=0.01, clip=1.0, subset_seed=0, init_seed=0, mask_seed=0,
        checkpoint_every=EVERY, log_every=1, held_out_cells=32,
    ),
)
CLOCKED = re.compile("seconds|(cells|tokens)_per_second|goodput|mfu")
KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, sys.argv[1])
import test_loop
from scaling.corpus.shards import Corpus
from scaling.pretrain import loop
step = loop.train_step
def killed(state, *rest):
    if int(state.step) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(state, *rest)
loop.train_step = killed
loop.pretrain(test_loop.SETTINGS, Corpus.open(sys.argv[2]), pathlib.Path(sys.argv[3]))
"""


def train(**changed) -> RunSettings:
    return dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, **changed))


def named(name: str) -> RunSettings:
    return dataclasses.replace(
        SETTINGS, objective=dataclasses.replace(SETTINGS.objective, name=name)
    )


def record(folder: pathlib.Path) -> list[dict]:
    """Rows of a run, without what depends on the clock."""
    rows = read_rows(folder / METRICS)
    return [{k: v for k, v in row.items() if not CLOCKED.match(k)} for row in rows]


def column(folder: pathlib.Path, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in record(folder) if name in row}


def params_of(folder: pathlib.Path, corpus) -> dict:
    loaded = loop.load_params(folder, SETTINGS.model, len(corpus.vocabulary))
    return jax.device_get(loaded)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def interrupt(monkeypatch, at: int, error: Exception):
    """Lets `at` steps of the next run pass and raises in place of the one after."""
    step, taken = loop.train_step, []

    def interrupted(*arguments):
        if len(taken) == at:
            raise error
        taken.append(1)
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory) -> pathlib.Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(SETTINGS, tiny_corpus, folder)
    return folder


def test_the_record_tells_of_every_step(whole, tiny_corpus):
    rows = record(whole)
    training = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(1, STEPS + 1))
    assert list(column(whole, "held_out/loss")) == list(range(0, STEPS + 1, 2))
    assert all(np.isfinite(value) for row in rows for value in row.values())
    for row in training:
        total = row["train/cross_entropy"] + 0.15 * row["train/similarity"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= row["train/uniqueness"] <= 1 and 0 <= row["train/accuracy"] <= 1
    rates = [row["learning_rate"] for row in training]
    assert rates[0] == 0 and rates[2] == max(rates) == pytest.approx(0.02)
    assert training[0]["parameters"] > training[0]["non_embedding_parameters"] > 0

    done = json.loads((whole / loop.DONE).read_text())
    assert done["steps"] == STEPS and done["cells"] == 60 and done["exposures"] == 16 * STEPS
    pool = tiny_corpus.obs[tiny_corpus.obs["split"] == "pool"]
    assert 60 * pool["length"].min() < done["tokens"] < 60 * 128
    assert done["held_out_loss"] == rows[-1]["held_out/loss"]
    assert {"checkpoints", "done.json", "metrics.jsonl", "settings.json", "vocabulary.json"} <= {
        p.name for p in whole.iterdir()
    }


def test_the_loss_falls_and_every_weight_moves(whole, tiny_corpus):
    held_out = column(whole, "held_out/loss")
    assert abs(held_out[0] - np.log(len(tiny_corpus.vocabulary))) < 0.5
    assert held_out[STEPS] < held_out[0] - 0.3
    training = list(column(whole, "train/loss").values())
    assert np.mean(training[-5:]) < np.mean(training[:5]) - 0.3
    start = loop.initial_params(0, SETTINGS.model, len(tiny_corpus.vocabulary))
    final = params_of(whole, tiny_corpus)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start, final)
    key_bias = moved["layer_0"]["attention"]["key"].pop("bias")  # a softmax does not see it
    assert min(jax.tree.leaves(moved)) > 0.05 > key_bias


@pytest.mark.parametrize("steps_taken", [3, 7, 16])
def test_a_stopped_run_goes_on_to_the_bit(
    steps_taken, whole, tiny_corpus, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        interrupt(patch, steps_taken, RuntimeError("power cut"))
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(SETTINGS, tiny_corpus, tmp_path)
    assert not (tmp_path / loop.DONE).exists()
    with monkeypatch.context() as patch:  # what the saved steps gave is not computed again
        left = STEPS - steps_taken // EVERY * EVERY
        interrupt(patch, left, AssertionError(f"more than {left} steps"))
        summary = pretrain(SETTINGS, tiny_corpus, tmp_path)
    assert record(tmp_path) == record(whole)
    assert_same_bits(params_of(tmp_path, tiny_corpus), params_of(whole, tiny_corpus))
    assert summary["seconds"] > 0


def test_a_checkpoint_holds_the_state_of_its_step(whole, tiny_corpus, tmp_path, monkeypatch):
    """Its buffers are donated to the next step while it is being written."""
    step, states = loop.train_step, []

    def kept(*arguments):
        state, logged = step(*arguments)
        states.append(jax.tree.map(np.array, state))
        return state, logged

    monkeypatch.setattr(loop, "train_step", kept)
    pretrain(SETTINGS, tiny_corpus, tmp_path)
    assert record(tmp_path) == record(whole)  # and so the same run twice is the same
    assert_same_bits(params_of(tmp_path, tiny_corpus), states[-1].params)
    with checkpoint.manager(tmp_path / loop.CHECKPOINTS) as checkpoints:
        assert list(checkpoints.all_steps()) == [14, STEPS]
        name = SETTINGS.hash(tiny_corpus.manifest["checksums"])
        at, restored, clock = checkpoint.restore(checkpoints, name, jax.device_put(states[0]))
    assert at == STEPS and int(restored.step) == STEPS and clock["seconds"] > 0
    assert_same_bits(jax.device_get(restored), states[-1])


def test_a_finished_run_is_skipped(whole, tiny_corpus, monkeypatch):
    interrupt(monkeypatch, 0, AssertionError("a step was taken"))
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    assert pretrain(SETTINGS, tiny_corpus, whole) == json.loads((whole / loop.DONE).read_text())
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_a_folder_of_other_settings_is_refused(whole, tiny_corpus):
    before = sorted(whole.rglob("*"))
    for other in (train(init_seed=1), named("mlm"), train(cells=61)):
        with pytest.raises(ValueError, match="holds another run .*: .*was"):
            pretrain(other, tiny_corpus, whole)
    manifest = {**tiny_corpus.manifest, "checksums": {"tokens-00000.uint16": "0"}}
    with pytest.raises(ValueError, match="give another --workdir"):
        pretrain(SETTINGS, dataclasses.replace(tiny_corpus, manifest=manifest), whole)
    assert sorted(whole.rglob("*")) == before


def test_a_folder_in_which_nothing_was_trained_goes_to_another_run(tiny_corpus, tmp_path):
    (tmp_path / "p.gmt").write_text("none\tno gene\tX\n")
    programs = {"strategy": "programs", "programs": str(tmp_path / "p.gmt")}
    masks = dataclasses.replace(SETTINGS.masking, **programs)
    with pytest.raises(ValueError, match="no gene of its 1 programs"):
        pretrain(dataclasses.replace(SETTINGS, masking=masks), tiny_corpus, tmp_path / "run")
    found = pretrain(train(steps=4), tiny_corpus, tmp_path / "run")
    held = json.loads((tmp_path / "run" / loop.SETTINGS).read_text())
    assert held["hash"] == found["hash"] and held["masking"]["strategy"] == "uniform"


MESHES = [  # devices, fsdp, tensor, micro_batches, cells of a device
    (8, 1, 1, 1, 2), (8, 4, 1, 1, 2), (8, 1, 4, 1, 8), (8, 2, 2, 1, 4), (8, 8, 1, 1, 2),
    (8, 1, 8, 1, 16), (8, 1, 1, 2, 2), (8, 2, 2, 4, 4), (1, 1, 1, 4, 16), (2, 1, 2, 1, 16),
]


@pytest.fixture(scope="module")
def alone(tiny_corpus, tmp_path_factory):
    """Five steps on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with on_devices(1):
        pretrain(train(steps=5, mask_seed=5), tiny_corpus, folder)
    return folder


@contextlib.contextmanager
def on_devices(count: int):
    whole = sharding.make_mesh
    with mock.patch.object(
        sharding, "make_mesh", lambda settings, batch: whole(settings, batch, jax.devices()[:count])
    ):
        yield


@pytest.mark.parametrize(("devices", "fsdp", "tensor", "micro", "cells"), MESHES)
def test_every_mesh_gives_what_one_device_gives(
    alone, tiny_corpus, tmp_path, monkeypatch, devices, fsdp, tensor, micro, cells
):
    step, parts = loop.train_step, []

    def watched(state, batch, *rest):
        parts.append([shard.data.shape for shard in batch.inputs_BxL.addressable_shards])
        kernel = state.params["layer_0"]["expand"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (16 // fsdp, 32 // tensor)
        moment = state.optimizer[1][0].mu["layer_0"]["expand"]["kernel"]
        assert moment.sharding == kernel.sharding
        return step(state, batch, *rest)

    monkeypatch.setattr(loop, "train_step", watched)
    settings = dataclasses.replace(
        train(steps=5, mask_seed=5), devices=sharding.DeviceSettings(fsdp, tensor, micro)
    )
    with on_devices(devices):
        pretrain(settings, tiny_corpus, tmp_path / "run")
    assert parts == 5 * [devices * [(cells, 128)]]
    mine, theirs = (read_rows(folder / METRICS) for folder in (tmp_path / "run", alone))
    assert [row.keys() for row in mine] == [row.keys() for row in theirs]
    for name in ("train/loss", "train/similarity", "train/gradient_norm", "held_out/loss",
                 "train/accuracy", "train/surplus_positions"):
        of_mesh, of_one = column(tmp_path / "run", name), column(alone, name)
        assert of_mesh.keys() == of_one.keys() and len(of_one) >= 5
        np.testing.assert_allclose(list(of_mesh.values()), list(of_one.values()), 2e-5)
    ours, one = (params_of(folder, tiny_corpus) for folder in (tmp_path / "run", alone))
    for params in (ours, one):  # no score depends on it: its gradients are rounding, which Adam
        del params["layer_0"]["attention"]["key"]["bias"]  # makes large
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), ours, one)


def collectives(fsdp: int, tensor: int) -> collections.Counter:
    """(kind, shape of a device's result) of each collective of a compiled step on 8 devices."""
    settings = dataclasses.replace(
        train(steps=5), devices=sharding.DeviceSettings(fsdp, tensor)
    )
    mesh = sharding.make_mesh(settings.devices, 16)
    tokens = np.stack([np.random.default_rng(k).permutation(298)[:128] + 2 for k in range(16)])
    drawn = 0, np.zeros(16, int), np.arange(16), 300, settings.masking
    with jax.set_mesh(mesh):
        state = loop.initial_state(np.uint32(0), settings.program(), 5, 300)
        cells = sharding.shard_batch(masking.mask_cells(tokens.astype(np.int32), *drawn), mesh)
        lowered = loop.train_step.lower(state, cells, np.uint32(0), settings.program(), 5)
        program = lowered.compile().as_text()
    found = re.findall(r"= \w+\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all)\(", program)
    return collections.Counter(
        (kind, tuple(int(n) for n in shape.split(",") if n)) for shape, kind in found
    )


def test_a_compiled_step_moves_what_the_rules_ask_for():
    # Every sum over the batch in one: of two that wait for nothing of each other, processes may
    # begin with another each, and wait for ever.
    assert not collectives(1, 1)
    weights = [(16, 2, 8)] * 3 + [(2, 8, 16), (16, 32), (32, 16), (16, 16), (128, 16), (300, 16)]
    gathered = collectives(8, 1)
    assert collections.Counter(
        {shape: n for (kind, shape), n in gathered.items() if kind == "all-gather"}
    ) == collections.Counter(weights)  # each that is cut, once
    # Two devices share heads and width: states are added up twice a layer, there and back. What is
    # gathered is the gradient of embedding and bias, whose parts of V the loss computes apart.
    slots = masking.capacity(128, 0.15)
    shared = collectives(1, 2)
    assert shared["all-reduce", (4, slots, 16)] == 4
    assert {shape for kind, shape in shared if kind == "all-gather"} == {(300, 16), (300,)}
    assert not any(kind == "all-to-all" for kind, _ in shared)


def test_cells_that_would_have_no_gene_are_refused(tiny_corpus, tmp_path):
    special = ("<pad>", "<mask>", "<cls>", "<eos>")
    genes = dataclasses.replace(tiny_corpus.vocabulary, special=special)
    short = dataclasses.replace(SETTINGS, model=dataclasses.replace(SETTINGS.model, length=2))
    with pytest.raises(ValueError, match="model.length 2 leaves no gene"):
        pretrain(short, dataclasses.replace(tiny_corpus, vocabulary=genes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_other_devices(tiny_corpus, tmp_path, monkeypatch):
    def on(fsdp, tensor):
        devices = sharding.DeviceSettings(fsdp, tensor)
        return dataclasses.replace(
            train(steps=5, mask_seed=5, checkpoint_every=2), devices=devices
        )

    with on_devices(1):
        pretrain(on(1, 1), tiny_corpus, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        interrupt(patch, 4, RuntimeError("power cut"))
        pretrain(on(4, 2), tiny_corpus, tmp_path / "run")
    with on_devices(2), monkeypatch.context() as patch:
        interrupt(patch, 1, AssertionError("more than one step"))
        pretrain(on(1, 2), tiny_corpus, tmp_path / "run")
    mine, theirs = (column(tmp_path / name, "train/loss") for name in ("run", "whole"))
    assert mine.keys() == theirs.keys() == {1, 2, 3, 4, 5}
    np.testing.assert_allclose(list(mine.values()), list(theirs.values()), 2e-5)


@pytest.mark.parametrize(("devices", "batch", "message"), [
    (sharding.DeviceSettings(), 12, "train.batch 12 is no multiple of 8 "),
    (sharding.DeviceSettings(micro_batches=3), 16, "train.batch 16 is no multiple of 24"),
    (sharding.DeviceSettings(fsdp=3), 16, "8 devices are no multiple of devices.fsdp 3"),
    (sharding.DeviceSettings(tensor=16), 16, "8 devices are no multiple of .* devices.tensor 16"),
])
def test_what_the_devices_cannot_share_is_refused(tiny_corpus, tmp_path, devices, batch, message):
    with pytest.raises(ValueError, match=message):
        pretrain(dataclasses.replace(train(batch=batch), devices=devices), tiny_corpus, tmp_path)



@pytest.mark.parametrize("number", ["loss", "gradient_norm"])
@pytest.mark.parametrize("at", [4, EVERY])
def test_a_loss_that_is_not_finite_stops_the_run(at, number, tiny_corpus, tmp_path, monkeypatch):
    """Its step and cells are told, also where the step stands between two rows of the record."""
    step, taken, changed = loop.train_step, [], {number: np.float32(np.inf)}

    def poisoned(*arguments):
        state, logged = step(*arguments)
        taken.append(1)
        return state, logged | (changed if len(taken) == at else {})

    monkeypatch.setattr(loop, "train_step", poisoned)
    found = f"inf at step {at}, whose cells are listed in .*not_finite.json; lower train"
    with pytest.raises(FloatingPointError, match=found):
        pretrain(train(log_every=3), tiny_corpus, tmp_path)
    assert max(column(tmp_path, "train/loss")) < at
    told = json.loads((tmp_path / "not_finite.json").read_text())
    assert told["step"] == at and told[number] == "inf"
    chosen, _ = Plan(60, 16, 0).at(at - 1)
    rows = loop.subset(tiny_corpus, SETTINGS.train)[chosen]
    assert told["cells"] == tiny_corpus.obs["cell_id"].to_numpy()[rows].tolist()
    assert not (tmp_path / loop.DONE).exists()
    with pytest.raises(ValueError, match="no finished checkpoint"):
        loop.load_params(tmp_path, SETTINGS.model, len(tiny_corpus.vocabulary))


def test_runs_that_differ_in_seeds_share_a_program(whole, tiny_corpus, tmp_path):
    programs = loop.train_step._cache_size()
    changes = {"mask_seed": 1}, {"init_seed": 1}, {"subset_seed": 1}
    for k, change in enumerate(changes):
        pretrain(train(**change), tiny_corpus, tmp_path / str(k))
    assert loop.train_step._cache_size() == programs
    losses = [column(folder, "held_out/loss") for folder in (whole, *tmp_path.iterdir())]
    assert len({of_run[STEPS] for of_run in losses}) == 4
    # Before any step only the weights matter: held-out masks are the same for every run.
    assert losses[0][0] == column(tmp_path / "0", "held_out/loss")[0]
    assert losses[0][0] != column(tmp_path / "1", "held_out/loss")[0]


@pytest.mark.slow
def test_masks_of_a_vocabulary_with_more_special_tokens(tiny_corpus, tmp_path, monkeypatch):
    special = ("<pad>", "<mask>", "<cls>", "<eos>")
    genes = dataclasses.replace(tiny_corpus.vocabulary, special=special)
    corpus = dataclasses.replace(tiny_corpus, vocabulary=genes)
    seen, mask = [], masking.mask_cells

    def spied(*arguments):
        seen.append(arguments[6])
        return mask(*arguments)

    monkeypatch.setattr(masking, "mask_cells", spied)
    pretrain(train(steps=4), corpus, tmp_path / "run")
    assert seen == 6 * [4]  # batches: two of held-out cells, and one of each step
    seen.clear()
    rows = np.arange(20)
    params = params_of(tmp_path / "run", corpus)
    masked_genes.score_model(params, SETTINGS.model, SETTINGS.masking, corpus, rows)
    frequency = masked_genes.token_frequency(corpus, rows, 128)
    assert frequency[:4].sum() == 0 and frequency.sum() == (corpus.tokens(rows, 128) > 3).sum()
    masked_genes.score_floors(frequency, 128, SETTINGS.masking, corpus, rows)
    assert seen == [4, 4]


def test_batches_of_several_lengths(whole, tiny_corpus, tmp_path, monkeypatch):
    """Each length is one program, of any subset; fewer positions are empty; no stop is seen."""
    step, shapes = loop.train_step, []

    def watched(state, batch, *rest):
        shapes.append(batch.inputs_BxL.shape)
        return step(state, batch, *rest)

    monkeypatch.setattr(loop, "train_step", watched)
    programs = step._cache_size()
    summary = pretrain(train(buckets=2), tiny_corpus, tmp_path / "whole")
    lengths = {length for _, length in shapes}
    assert len(shapes) == STEPS and {cells for cells, _ in shapes} == {16}
    assert len(lengths) == 2 and max(lengths) == 128
    pretrain(train(buckets=2, cells=20, subset_seed=1), tiny_corpus, tmp_path / "fewer")
    assert step._cache_size() == programs + 1
    of_one = json.loads((whole / loop.DONE).read_text())
    assert 0 < summary["padding"] < of_one["padding"] / 1.2
    assert summary["tokens"] == of_one["tokens"]

    monkeypatch.setattr(loop, "train_step", step)
    with monkeypatch.context() as patch:
        interrupt(patch, 9, RuntimeError("power cut"))
        with pytest.raises(RuntimeError, match="power cut"):
            pretrain(train(buckets=2), tiny_corpus, tmp_path / "stopped")
    pretrain(train(buckets=2), tiny_corpus, tmp_path / "stopped")
    assert record(tmp_path / "stopped") == record(tmp_path / "whole")


def test_a_loss_that_depends_on_padding_takes_one_length():
    published = dataclasses.replace(SETTINGS.objective, denominator="published")
    with pytest.raises(ValueError, match="depends on the padded length; give train.buckets=1"):
        dataclasses.replace(train(buckets=2), objective=published)
    assert dataclasses.replace(train(buckets=1), objective=published)


def test_objectives_differ(whole, tiny_corpus, tmp_path):
    for name in ("mlm", "cab_no_similarity"):
        pretrain(named(name), tiny_corpus, tmp_path / name)
    entropy = {
        folder.name: column(folder, "held_out/cross_entropy")
        for folder in (whole, *tmp_path.iterdir())
    }
    # The same weights: blocking changes what the cross-entropy reads, the similarity does not.
    assert entropy["whole"][0] == pytest.approx(entropy["cab_no_similarity"][0], rel=1e-6)
    assert abs(entropy["whole"][0] - entropy["mlm"][0]) > 0.01
    assert len({of_run[STEPS] for of_run in entropy.values()}) == 3
    assert set(column(tmp_path / "cab_no_similarity", "train/similarity").values()) == {0.0}
    assert min(column(whole, "train/similarity").values()) > 0
    for name in ("mlm", "cab_no_similarity"):
        losses = column(tmp_path / name, "train/loss")
        assert losses == column(tmp_path / name, "train/cross_entropy")


def test_the_whole_step_holds_no_array_over_positions_or_slots_and_vocabulary():
    B, L, V = 2, 64, 2000
    small = dataclasses.replace(SETTINGS.model, width=16, heads=1, length=L)
    settings = dataclasses.replace(SETTINGS, model=small).program()
    tokens, draw = np.ones((B, L), np.int32), (0, np.ones(B, np.int32), np.ones(B, np.uint32))
    batch = masking.mask_cells(tokens, *draw, V, settings.masking)
    state = loop.initial_state(np.uint32(0), settings, STEPS, V)
    lowered = loop.train_step.lower(state, batch, 0, settings, STEPS)
    shapes = re.findall(r"tensor<((?:\d+x)+)[a-z]", lowered.as_text())
    largest = max(int(np.prod([int(n) for n in shape.split("x")[:-1]])) for shape in shapes)
    slots = masking.capacity(L, 0.15)
    assert V * small.width <= largest < B * slots * V
    assert "top_k" not in lowered.as_text()


def test_converged_is_what_the_last_tenth_says():
    def of(losses: dict[int, float], steps: int) -> dict:
        return loop.convergence([{"step": s, "held_out/loss": x} for s, x in losses.items()], steps)

    assert of({0: 9.0, 90: 5.0, 100: 4.96}, 100) == {"held_out_loss": 4.96, "converged": True}
    assert of({0: 9.0, 90: 5.0, 100: 4.94}, 100) == {"held_out_loss": 4.94, "converged": False}
    assert of({0: 9.0, 90: 5.0, 95: 4.9, 100: 4.89}, 100)["converged"] is False
    assert of({0: 9.0, 90: 5.0, 100: 7.0}, 100)["converged"] is True
    assert of({90: -5.0, 100: -5.1}, 100)["converged"] is False
    assert of({0: 9.0, 90: 5.0}, 100) == {"held_out_loss": None, "converged": None}
    assert of({0: 9.0, 50: 5.0, 100: 5.0}, 100) == {"held_out_loss": 5.0, "converged": None}
    assert of({100: 5.0}, 100) == {"held_out_loss": 5.0, "converged": None}


def test_weights_of_a_run_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no checkpoints; train the run"):
        loop.load_params(tmp_path / "absent", SETTINGS.model, 10)


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_bit(whole, tiny_corpus, tmp_path):
    """SIGKILL before the first checkpoint, while it is written, and twice after the second."""
    here = pathlib.Path(__file__).parent
    for step in (3, 7, 16, 16):
        command = [sys.executable, "-c", KILLED, here, tiny_corpus.folder, tmp_path, step]
        killed = subprocess.run([str(c) for c in command], cwd=here.parent, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert not (tmp_path / loop.DONE).exists()
    with checkpoint.manager(tmp_path / loop.CHECKPOINTS, read_only=True) as checkpoints:
        assert checkpoints.latest_step() in (7, 14)
    pretrain(SETTINGS, tiny_corpus, tmp_path)
    assert record(tmp_path) == record(whole)
    assert_same_bits(params_of(tmp_path, tiny_corpus), params_of(whole, tiny_corpus))


@pytest.mark.parametrize(
    ("backend", "name", "message"),
    [
        ("cpu", "pallas_tpu", "'pallas_tpu' runs on TPU alone, and this is CPU"),
        ("cpu", "pallas_gpu", "'pallas_gpu' runs on GPU alone, and this is CPU"),
        ("gpu", "pallas_gpu", "'pallas_gpu' multiplies bfloat16 states"),
    ],
)
def test_a_kernel_of_another_platform_is_refused_at_once(
    tiny_corpus, tmp_path, monkeypatch, backend, name, message
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    objective = dataclasses.replace(SETTINGS.objective, implementation=name)
    with pytest.raises(ValueError, match=message):
        pretrain(dataclasses.replace(SETTINGS, objective=objective), tiny_corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()
