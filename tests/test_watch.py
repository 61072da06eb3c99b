"""What rows tell of a run's speed, padding, work, time and norms, beside what was trained."""

import time

import jax
import numpy as np
import pytest
from test_loop import SETTINGS, column, interrupt, record, train

from scaling.corpus.tokens import PAD
from scaling.pretrain import batches, checkpoint, flops, loop, masking, watch
from scaling.pretrain.loop import pretrain
from scaling.pretrain.writer import METRICS, read_rows

STEPS, EVERY = 10, 3
SHORT = train(steps=STEPS, cells=60, buckets=2, log_every=EVERY, checkpoint_every=4)
QUIET = {"steps": STEPS, "held_out_every": 100, "checkpoint_every": 100, "log_every": 1}


@pytest.fixture(scope="module")
def watched(tiny_corpus, tmp_path_factory):
    """(folder, summary, inputs of each step) of a run of two lengths, a peak being known."""
    folder, inputs, step = tmp_path_factory.mktemp("watched") / "run", [], loop.train_step

    def seen(state, batch, *rest):
        inputs.append(np.array(batch.inputs_BxL))
        return step(state, batch, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", seen)
        patch.setitem(flops.PEAKS, jax.devices()[0].device_kind, 1e9)
        summary = pretrain(SHORT, tiny_corpus, folder)
    return folder, summary, inputs


def rows_of(folder) -> list[dict]:
    return [row for row in read_rows(folder / METRICS) if "train/loss" in row]


def test_rows_count_tokens_padding_and_operations(watched, tiny_corpus):
    folder, summary, inputs = watched
    rows, genes = rows_of(folder), len(tiny_corpus.vocabulary)
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert len({of.shape for of in inputs}) == 2
    tokens = np.array([(of != PAD).sum() for of in inputs])
    work = np.array([
        16 * flops.of_cell(
            SETTINGS.model, of.shape[1], masking.capacity(of.shape[1], 0.15), genes
        ).model
        for of in inputs
    ])
    before = 0
    for row in rows:
        here = slice(before, row["step"])
        assert row["tokens_trained"] == tokens[: row["step"]].sum()
        assert row["flops"] == work[: row["step"]].sum()
        positions = sum(of.size for of in inputs[here])
        assert row["train/padding"] == pytest.approx(1 - tokens[here].sum() / positions)
        cells = 16 * (row["step"] - before)
        per_cell = row["tokens_per_second"] / row["cells_per_second"]
        assert per_cell == pytest.approx(tokens[here].sum() / cells)
        busy = row["mfu"] * jax.device_count() * 1e9 / row["cells_per_second"]
        assert busy == pytest.approx(work[here].sum() / cells)
        before = row["step"]
    assert summary["flops"] == work.sum() and summary["tokens_trained"] == tokens.sum()
    rate = summary["tokens_per_second"] * summary["seconds"]
    assert rate == pytest.approx(tokens.sum())
    assert summary["cells_per_second"] * summary["seconds"] == pytest.approx(16 * STEPS)


def test_a_restart_counts_on(watched, tiny_corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        interrupt(patch, 7, RuntimeError("power cut"))
        pretrain(SHORT, tiny_corpus, tmp_path)
    summary = pretrain(SHORT, tiny_corpus, tmp_path)
    assert record(tmp_path) == record(watched[0])
    for name in ("flops", "tokens_trained"):
        assert summary[name] == watched[1][name]
    # The peak of these devices is not known: their rows claim no share of it.
    assert not any("mfu" in row for row in rows_of(tmp_path))


def test_norms_of_each_group(tiny_corpus, tmp_path):
    pretrain(train(steps=STEPS), tiny_corpus, tmp_path)
    first = rows_of(tmp_path)[0]
    params = loop.initial_params(0, SETTINGS.model, len(tiny_corpus.vocabulary))
    parts = {
        "embedding": ("embedding", "token_type", "norm"), "positions": ("positions",),
        "layer_0": ("layer_0",), "head": ("dense", "head_norm", "bias"),
    }
    assert {name for names in parts.values() for name in names} == set(params)
    for group, names in parts.items():
        leaves = jax.tree.leaves([params[name] for name in names])
        wanted = np.sqrt(sum((np.float64(leaf) ** 2).sum() for leaf in leaves))
        assert first[f"param_norm/{group}"] == pytest.approx(wanted, rel=1e-5)
    for row in rows_of(tmp_path):
        groups = {k.split("/")[1] for k in row if k.startswith("gradient_norm/")}
        assert groups == {k.split("/")[1] for k in row if k.startswith("param_norm/")} == {*parts}
        total = np.sqrt(sum(row[f"gradient_norm/{group}"] ** 2 for group in parts))
        assert row["train/gradient_norm"] == pytest.approx(total, rel=1e-5)
    assert all(of["gradient_norm/layer_0"] > 0 for of in rows_of(tmp_path))


def slow(monkeypatch, where, name, seconds):
    """Lets a function take longer; the seconds are given for each call by its arguments."""
    plain = getattr(where, name)

    def slowed(*args, **kwargs):
        time.sleep(seconds(*args) if callable(seconds) else seconds)
        return plain(*args, **kwargs)

    monkeypatch.setattr(where, name, slowed)


@pytest.mark.parametrize(("where", "name", "seconds", "counted", "least"), [
    (batches.Batches, "__getitem__", 0.5, "input", 0.4),  # two threads read ahead
    (checkpoint, "save", 0.6, "checkpoint", 3 * 0.6),
    (watch, "held_out_sums", 0.1, "held_out", 10 * 2 * 0.1),  # the first counts as compiling
])
def test_lost_time_has_a_name(
    watched, tiny_corpus, tmp_path, monkeypatch, where, name, seconds, counted, least
):
    often = {"checkpoint": {"checkpoint_every": 4}, "held_out": {"held_out_every": 0}}
    slow(monkeypatch, where, name, seconds)
    settings = train(**{**QUIET, **often.get(counted, {})})
    found = pretrain(settings, tiny_corpus, tmp_path)
    spent = {k: v for k, v in found.items() if k.startswith("seconds/")}
    assert spent[f"seconds/{counted}"] > least
    assert found["goodput"] == pytest.approx(1 - sum(spent.values()) / found["seconds"])
    last = rows_of(tmp_path)[-1]
    assert 0 < last["seconds"] <= found["seconds"] and last["seconds/lost"] == 0


def test_the_first_step_of_each_length_counts_as_compiling(
    watched, tiny_corpus, tmp_path, monkeypatch
):
    lengths = set()

    def seconds(state, batch, *rest):
        is_new = batch.inputs_BxL.shape not in lengths
        lengths.add(batch.inputs_BxL.shape)
        return 0.5 if is_new else 0.1

    slow(monkeypatch, loop, "train_step", seconds)
    found = pretrain(SHORT, tiny_corpus, tmp_path)
    assert len(lengths) == 2 and 1.0 < found["seconds/compile"] < 1.4
    assert found["seconds"] > 1.8 and found["goodput"] < 0.8


def test_waiting_while_the_devices_train_is_no_loss():
    counted = []

    class Dispatched:
        def __init__(self, ready):
            self.is_ready = lambda: ready

    log = object.__new__(watch.Log)
    log._clock = type("Clock", (), {"add": lambda _, *found: counted.append(found)})()
    for dispatched in (None, Dispatched(False), Dispatched(True)):
        log._dispatched = dispatched and {"gradient_norm": dispatched}
        with log.input():
            time.sleep(0.01)
    assert [name for name, _ in counted] == 2 * ["input"] and counted[1][1] > 0.01


def test_steps_that_a_restart_threw_away_are_lost(tiny_corpus, tmp_path, monkeypatch):
    settings = train(steps=STEPS, checkpoint_every=4)
    slow(monkeypatch, loop, "train_step", 0.2)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        interrupt(patch, 8, RuntimeError("power cut"))
        pretrain(settings, tiny_corpus, tmp_path / "one")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        interrupt(patch, 7, RuntimeError("power cut"))
        pretrain(settings, tiny_corpus, tmp_path / "two")
    reached = read_rows(tmp_path / "two" / METRICS)[-1]["seconds"]
    found = pretrain(settings, tiny_corpus, tmp_path / "two")
    # Steps 5 and 6 were trained and written; the checkpoint is of step 4.
    assert 0.35 < found["seconds/lost"] < reached
    assert found["seconds"] > reached + 6 * 0.2
    assert pretrain(settings, tiny_corpus, tmp_path / "one")["seconds/lost"] < 0.1


def test_a_step_is_read_after_the_next_is_dispatched(tiny_corpus, tmp_path, monkeypatch):
    step, written = loop.train_step, []

    def seen(*args):
        written.append([row["step"] for row in rows_of(tmp_path)])
        return step(*args)

    monkeypatch.setattr(loop, "train_step", seen)
    pretrain(train(**QUIET), tiny_corpus, tmp_path)
    assert written == [list(range(1, max(number - 1, 1))) for number in range(1, STEPS + 1)]


def test_held_out_cells_are_measured_as_often_as_asked_for(tiny_corpus, tmp_path):
    settings = train(steps=STEPS, held_out_every=4)
    summary = pretrain(settings, tiny_corpus, tmp_path)
    losses = column(tmp_path, "held_out/loss")
    assert list(losses) == [0, 4, 8, 10]
    assert summary["held_out_loss"] == losses[STEPS] and summary["converged"] is not None
    assert settings.program() == train(steps=STEPS).program()
    assert settings.hash({}) != train(steps=STEPS).hash({})


@pytest.mark.parametrize(("steps", "traced"), [(3, {2, 3, 4}), (100, set(range(2, STEPS + 1)))])
def test_a_trace_holds_the_steps_asked_for(tiny_corpus, tmp_path, steps, traced):
    settings = train(**QUIET)
    pretrain(settings, tiny_corpus, tmp_path, trace=steps)
    (path,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert path.relative_to(tmp_path).parts[:3] == ("profile", "plugins", "profile")
    found = {
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines for event in line.events if event.name == "train"
    }
    assert found == traced
    assert column(tmp_path, "train/loss").keys() == set(range(1, STEPS + 1))
    with pytest.raises(ValueError, match="the run is done; trace it in another --workdir"):
        pretrain(settings, tiny_corpus, tmp_path, trace=3)
