"""What the bench compares with, how it measures, and that the shapes are the real ones."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from configs import default, quickstart
from kernels.cab import bench, cab_loss, shapes
from scaling.analyse import bench as fitting
from scaling.analyse.forms import FORMS
from scaling.corpus import alone, bench_report, plain, readers, tile
from scaling.corpus import bench as corpus_bench
from scaling.evaluate import bench as evaluation_bench
from scaling.pretrain import feeding, masking, sharding
from scaling.pretrain.bench import feed, memory_alone, one_cell, steps
from scaling.pretrain.model import ModelSettings
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

    reports = {
        name: {"process_before": 1, "process_peak": peak, "temporary": 2}
        for name, peak in {"a": 8, "b": 12}.items()
    }
    of_case = {("group", name): report for name, report in reports.items()}
    group = {"a": case("a"), "b": case("b")}
    found = bench.measure({"group": group}, 2, lambda *of: of_case[of])["group"]
    assert calls == ["a", "b"] * 3
    assert found["a"]["ratios"] == {"seconds": 1, "process_peak": 1, "temporary": 1}
    seconds = {name: row["seconds"]["least"] for name, row in found.items()}
    assert found["b"]["ratios"]["seconds"] == seconds["b"] / seconds["a"]
    assert found["b"]["bytes"] == reports["b"] and found["b"]["ratios"]["process_peak"] == 1.5


def test_memory_is_that_of_a_fresh_process():
    settings = dataclasses.asdict(Settings.from_config(quickstart.get_config()).run)
    found = alone.run(memory_alone, "tiny", settings, 100, 2, "gradients of tiny, 1 cell", "cab")
    assert 0 < found["process_before"] < found["process_peak"] and found["temporary"] > 0
    with pytest.raises(RuntimeError, match="(?s)memory_alone: .*KeyError: 'literal'"):
        alone.run(memory_alone, "tiny", settings, 100, 2, "gradients of tiny, 1 cell", "literal")


def test_refits_are_measured_for_each_form():
    rounds = 2
    row = fitting.refits(8, [("power", "raw", 6)], rounds)
    assert list(row["rates"]) == ["power, raw"]
    assert row["rates"]["power, raw"] == 8 / row["seconds"]["power, raw"]["least"]
    counts = {title: case[0] for title, case in fitting.CASES.items()}
    sizes = [{len(FORMS[form].names) for form, *_ in case[1]} for case in fitting.CASES.values()]
    assert list(counts.values()) == [10_000, 1_000] and sizes == [{3}, {5}]


@pytest.mark.slow
def test_memory_of_the_blocked_head_in_a_fresh_process():
    """At V1's shape and one cell: a few arrays of M x 512, and a third of the reference's."""

    def bytes_of(implementation):
        group, case = "head of gf-v1-10m, 1 cell", f"cab, {implementation}"
        return alone.run(memory_alone, "gf-v1-10m", settings, shape.V, 4, group, case)

    shape = shapes.SHAPES["gf-v1-10m"]
    settings = dataclasses.asdict(Settings.from_config(default.get_config()).run)
    blocked, reference = bytes_of("blocked"), bytes_of("reference")
    of_gradients = 4 * shape.V * shape.D
    # What arrays over the slots and a block of 512 genes took, and the gradient by the embedding.
    assert blocked["temporary"] - 2 * of_gradients < 12 * 4 * shape.M * 512
    grown = [of["process_peak"] - of["process_before"] for of in (blocked, reference)]
    assert grown[0] < grown[1] / 3


def _cells(folder, tiny_corpus, count=300):
    h5ad = tiny_corpus.manifest["files"][0]["path"]
    data = Settings.from_config(default.get_config()).data
    return corpus_bench.Cells(folder, h5ad, count, data)


def test_tiled_cells_are_thinned_copies_of_which_no_two_are_alike(tiny_corpus, tmp_path):
    source = readers.open_source(tiny_corpus.manifest["files"][0]["path"])
    tile.tile(source, 500, tmp_path / "tiled.h5ad")
    copies = readers.open_source(tmp_path / "tiled.h5ad")
    assert list(tmp_path.iterdir()) == [copies.path]
    before = sp.vstack([counts for _, counts in readers.chunks(source)]).toarray()
    after = sp.vstack([counts for _, counts in readers.chunks(copies)]).toarray()
    again = np.arange(500) % len(before)
    assert (after <= before[again]).all()
    np.testing.assert_allclose(after.sum() / before[again].sum(), tile.KEPT, atol=0.005)
    assert len(np.unique(after, axis=0)) == 500
    assert list(copies.genes) == list(source.genes)
    assert (copies.obs["donor"].to_numpy() == source.obs["donor"].to_numpy()[again]).all()
    assert copies.obs.index[[0, 241]].tolist() == ["cell_0000001-0", "cell_0000002-1"]


def test_the_plain_ranking_is_ours_and_a_difference_stops_the_bench(
    tiny_corpus, tmp_path, monkeypatch
):
    cells = _cells(tmp_path, tiny_corpus)
    names = str(cells.path), str(tiny_corpus.folder / "vocabulary.json")
    found = corpus_bench.timed_ranking(*names, 2)
    assert found["cells"] == 300 and found["genes_per_cell"] > 50
    assert [len(times) for times in found["seconds"].values()] == [2, 2]
    by_numpy = plain.rank_cells
    monkeypatch.setattr(plain, "rank_cells", lambda *arguments: by_numpy(*arguments)[::-1])
    with pytest.raises(RuntimeError, match="rankings differ"):
        corpus_bench.timed_ranking(*names, 1)


def test_the_plain_data_set_holds_our_cells_and_our_order_but_for_ties(tiny_corpus, tmp_path):
    pytest.importorskip("datasets")
    length, genes = 60, tiny_corpus.vocabulary
    file = tiny_corpus.manifest["files"][0]["path"]
    names = file, str(tiny_corpus.folder / "vocabulary.json"), str(tmp_path / "plain")
    stages = alone.run(plain.tokenise, *names, length, 1)
    assert list(stages) == ["rank", "gather", "cut", "save"] and min(stages.values()) > 0
    (arrow,) = (tmp_path / "plain").glob("*.arrow")
    with pa.memory_map(str(arrow)) as content:
        table = pa.ipc.open_stream(content).read_all().to_pandas()
    obs = tiny_corpus.obs
    assert table["cell_id"].tolist() == [name.split(":")[-1] for name in obs["cell_id"]]
    assert table["n_counts"].tolist() == obs["total"].tolist()
    assert table["donor"].tolist() == obs["donor"].tolist()
    assert table["length"].tolist() == obs["length"].clip(upper=length).tolist()
    every = np.arange(len(obs))
    counts = tiny_corpus.counts(every).toarray().astype(np.float64)
    score = counts / obs["total"].to_numpy()[:, None] * 1e4 / genes.medians
    swapped = 0
    both = zip(tiny_corpus.cells(every), table["input_ids"], strict=True)
    for cell, (ours, theirs) in enumerate(both):
        special = len(genes.special)
        ours, theirs = ours[:length].astype(int) - special, theirs - special
        np.testing.assert_array_equal(score[cell, ours], score[cell, theirs])
        assert len(set(theirs)) == len(theirs) == min(length, obs["length"][cell])
        swapped += (ours != theirs).sum()
    assert swapped < 0.05 * table["length"].sum()


def test_the_plain_collator_pads_to_the_longest_and_masks_as_bert():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    masks = {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "draw_special": False}
    cells = [{"input_ids": list(range(2, 2 + size))} for size in (2_000, 1_500, 1_000) * 8]
    fed = feeding.collate(50_000, masks, cells)
    tokens = np.zeros((24, 2_000), int)
    for row, cell in zip(tokens, cells, strict=True):
        row[: len(cell["input_ids"])] = cell["input_ids"]
    inputs, labels = fed["input_ids"].numpy(), fed["labels"].numpy()
    assert inputs.shape == tokens.shape
    np.testing.assert_array_equal(fed["attention_mask"].numpy(), tokens > 0)
    chosen = labels != -100
    assert (tokens[chosen] > 0).all()
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    share = [np.mean(x) for x in (chosen[tokens > 0], (inputs == 1)[chosen])]
    np.testing.assert_allclose(share, [0.15, 0.8], atol=0.02)
    np.testing.assert_allclose((inputs == tokens)[chosen].mean(), 0.1, atol=0.02)


def test_our_feeding_is_timed_as_far_as_the_devices(tiny_corpus, monkeypatch):
    masks = {"rate": 0.15, "mask_share": 0.8, "random_share": 0.1, "draw_special": False}
    shard, fed = sharding.shard_batch, []

    def watched(*arguments):
        fed.append(shard(*arguments))
        return fed[-1]

    monkeypatch.setattr(sharding, "shard_batch", watched)
    taken = feeding.seconds(str(tiny_corpus.folder), 64, 3, 16, 4, masks, 2)
    assert len(taken) == 2 and min(taken) > 0 and len(fed) == 4 * 3
    for cells in fed:
        assert len(cells.inputs_BxL.sharding.device_set) == jax.device_count()
        assert cells.inputs_BxL.dtype == np.int32 and cells.inputs_BxL.shape[0] == 16
        assert (cells.labels_BxM >= 0).any() and (cells.inputs_BxL == 1).any()
    assert len({np.asarray(cells.inputs_BxL).tobytes() for cells in fed}) == 4 * 3
    with pytest.raises(ValueError, match="masking.rate is 2"):
        feeding.seconds(str(tiny_corpus.folder), 64, 3, 16, 4, {**masks, "rate": 2}, 1)


@pytest.mark.parametrize("absent", ["datasets", "torch"])
def test_a_row_whose_library_is_missing_is_left_out_with_its_reason(
    absent, tiny_corpus, tmp_path, monkeypatch
):
    cells = _cells(tmp_path / "cells", tiny_corpus)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == absent else name)
    rows = {"feeding": feed(cells, 16, {}, 1)}
    if absent == "datasets":
        rows["building"] = corpus_bench.building(cells, 1)
    assert not cells.folder.exists() and corpus_bench.missing("numpy") == {}
    lines = bench_report.table(rows).splitlines()
    assert lines[1] == f"  left out: needs {absent}: pip install '.[bench]'"
    assert len(lines) == 2 * len(rows)


def test_what_a_killed_run_left_is_no_head_start(tiny_corpus, tmp_path):
    cells = _cells(tmp_path, tiny_corpus)
    for name in ("turn", "turn.partial"):
        (tmp_path / name).mkdir()
    assert not cells.turn().exists() and not list(tmp_path.iterdir())


def test_memory_goes_on_after_what_was_found_and_removes_large_files(
    tiny_corpus, tmp_path, monkeypatch
):
    cells, watched = _cells(tmp_path, tiny_corpus, 250), []

    def watch(function, fields, out):
        if len(watched) == 3:
            raise KeyboardInterrupt
        assert readers.open_source(fields["h5ad"]).obs.shape[0] in (250, 300)
        watched.append((fields["h5ad"], fields["workers"]))
        return 1.0, {"all": len(watched), "largest": 1, "processes": 1}

    monkeypatch.setattr(alone, "run_watched", watch)
    with pytest.raises(KeyboardInterrupt):
        corpus_bench.memory(cells, [250, 300])
    watched.pop()
    sizes = corpus_bench.memory(cells, [250, 300])["sizes"]
    assert [(s["cells"], s["workers"], s["all"]) for s in sizes] == [
        (250, 1, 1), (250, 2, 2), (300, 1, 3), (300, 2, 3)
    ]
    assert [path.name for path in tmp_path.glob("*.h5ad")] == ["cells-250.h5ad"]


def test_ratios_are_of_the_least_times():
    row = corpus_bench.row("build", "cells/s", 12, {"ours": [2, 1, 3], "plain": [6, 9, 4]})
    assert row["rates"] == {"ours": 12, "plain": 3} and row["ratio"] == 4 and row["goal"] == 8
    assert row["seconds"]["plain"] == {"least": 4, "median": 6}
    assert "ours to plain                4.00 (goal 8)" in bench_report.table({"build": row})


def test_batch_mixing_is_timed_at_each_size():
    row = evaluation_bench.mixing([100, 200])
    assert list(row["rates"]) == list(row["memory"]) == ["100 cells", "200 cells"]
    for way, cells in (("100 cells", 100), ("200 cells", 200)):
        assert row["rates"][way] * row["seconds"][way] == pytest.approx(cells)
        assert row["memory"][way] > 1e8
    assert "goal                          111 cells/s" in bench_report.table({"mixing": row})


def test_deletions_are_timed():
    model = dataclasses.asdict(ModelSettings(1, 16, 2, 16, 48, "relu", 0.0, 1e-12))
    row = evaluation_bench.deleting(model, 90)
    [(way, rate)] = row["rates"].items()
    assert way == "32 genes of a cell of 48" and rate * row["seconds"][way] == pytest.approx(32)
    assert "deletions/s" in bench_report.table({"deleting genes": row})


def test_a_fresh_process_gives_its_value_its_memory_or_its_last_words():
    assert alone.run(divmod, 7, 2) == [3, 1]
    with pytest.raises(RuntimeError, match="(?s)divmod: .*by zero"):
        alone.run(divmod, 7, 0)
    hold = "import time; held = bytearray(b'1') * {}; time.sleep(0.5)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    _, little = alone.run_watched(exec, hold.format(1))
    _, much = alone.run_watched(exec, hold.format(200_000_000))
    assert little["processes"] == much["processes"] == 1
    assert much["all"] == much["largest"]
    assert 195e6 < much["all"] - little["all"] < 230e6
    _, both = alone.run_watched(exec, child.format(200_000_000))
    assert both["processes"] == 2 and both["largest"] > 200e6
    assert both["all"] - both["largest"] > 5e6


@pytest.mark.slow
def test_the_corpora_are_measured_and_nothing_but_the_record_stays(tiny_corpus, tmp_path):
    pytest.importorskip("datasets"), pytest.importorskip("torch")
    command = [sys.executable, "-m", "experiments.bench", "--only=corpus:", "--rounds=1"]
    sizes = ["--corpus_cells=200", "--memory_cells=200,300"]
    names = [f"--h5ad={tiny_corpus.manifest['files'][0]['path']}", f"--out={tmp_path / 'b.json'}"]
    env = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run([*command, *sizes, *names], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "b.png"}
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert list(rows) == [f"corpus: {n}" for n in ("ranking", "building", "feeding", "memory")]
    for row in list(rows.values())[:3]:
        assert row["ratio"] == row["rates"]["ours"] / row["rates"]["plain"] > 0
    found = [(size["cells"], size["workers"]) for size in rows["corpus: memory"]["sizes"]]
    assert found == [(200, 1), (200, 2), (300, 1), (300, 2)]
    assert all(1e8 < size["largest"] <= size["all"] for size in rows["corpus: memory"]["sizes"])
    assert "ours to plain" in done.stdout
