"""Hundreds of odd and damaged stores: a clean error that names the file, or the right tokens."""

import collections
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys

import damages
import numpy as np
import odd_cells
import odd_files
import pandas as pd
import pytest
import write_stores as write
from test_bad_input import SETTINGS

from scaling.corpus import build, inspect, readers, shards
from scaling.corpus.stores import by_cell, loom, mtx
from scaling.corpus.vocabulary import Vocabulary

BATCH, BATCHES, WILD_BATCHES, WILD_SEED, SOMA_SEED = 20, 21, 8, 10_000, 20_000


@pytest.fixture(autouse=True)
def few_cells_at_a_time(monkeypatch):
    cut_small(monkeypatch)


def cut_small(monkeypatch) -> None:
    """Chunks, slices and blocks so small that every file has many, as large files have."""
    monkeypatch.setattr(readers, "CHUNK_CELLS", 5)
    monkeypatch.setattr(readers.chunks, "__defaults__", (None, 5))
    monkeypatch.setattr(by_cell, "ENTRIES", 16)
    monkeypatch.setattr(mtx, "ENTRIES", 16)
    monkeypatch.setattr("scaling.corpus.stores.anndata_store.ENTRIES", 16)
    monkeypatch.setattr(loom, "SLICE", 4)


def check(seed: int, folder: pathlib.Path) -> str:
    """Writes the file of a seed and builds its corpus: "built" as it should be, or "refused"."""
    rng = np.random.default_rng(seed)
    kind = odd_files.KINDS[seed % len(odd_files.KINDS)] if seed < SOMA_SEED else odd_files.SOMA
    cells = odd_cells.draw(rng)
    odd = rng.choice(len(odd_cells.ODDITIES), rng.integers(1, 5), replace=False)
    did = [odd_cells.ODDITIES[k] for k in odd]
    for change in did:
        change(rng, cells)
    medians = odd_cells.draw_vocabulary(rng, cells)
    hits = ()
    if seed >= SOMA_SEED:
        hits = [(), damages.SOMA][seed % 2]
    elif seed >= WILD_SEED:
        hits = damages.WILD
    elif rng.random() < 0.3:
        did.append(odd_cells.FAULTS[rng.integers(len(odd_cells.FAULTS))])
        did[-1](rng, cells)
    elif rng.random() < 0.6:
        hits = damages.DAMAGES
    path, verdict = folder / kind[0], ""
    odd_files.write_store(rng, path, kind, cells)
    while hits and not verdict:
        did.append(hits[rng.integers(len(hits))])
        verdict = did[-1](rng, path, kind)
    if not odd_files.labelled(kind):
        cells.labels = None
    meant = odd_cells.expected(cells, medians, odd_files.typed(kind))
    if verdict == "must" or cells.stored == "complex128":
        meant = None
    may_be_refused = meant is None or verdict == "may" or cells.stored == "S"

    Vocabulary(tuple(medians), np.array(list(medians.values()))).save(folder / "v.json")
    labels = "cell_type" if odd_files.labelled(kind) and cells.labels is not None else ""
    changes = {"h5ad": str(path), "vocabulary": str(folder / "v.json"), "cell_type": labels}
    changes["layer"] = kind[1].partition("layers/")[2]
    story = f"seed {seed}, {kind}, {cells.stored}: {[change.__name__ for change in did]}"
    try:
        corpus = build.build(dataclasses.replace(SETTINGS, **changes), folder / "out" / "corpus")
    except ValueError as error:
        assert may_be_refused, f"{story}: refused, {error}"
        assert "fuzzed" in str(error), f"{story}: no file is named, {error}"
        assert not list((folder / "out").glob("*")), f"{story}: unfinished work stays"
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{story}: {type(error).__name__}, {error}") from error
    tokens = [t.tolist() for t in corpus.cells(np.arange(len(corpus.obs)))]
    columns = (corpus.obs[name] for name in ("cell_id", "cell_type", "total"))
    found = list(zip(*columns, tokens, strict=True))
    if found != meant and verdict == "may":  # HDF5 has no checksums: another table, but a whole one
        theirs = odd_files.read_by_others(path, kind)
        meant = theirs and odd_cells.expected(theirs, medians, odd_files.typed(kind))
    assert found == meant, f"{story}: another corpus"
    assert inspect.verify(corpus.folder) == [], story
    assert [p.name for p in (folder / "out").iterdir()] == ["corpus"], story
    return "built"


def check_all(seeds, folder: pathlib.Path) -> collections.Counter:
    found, faults = collections.Counter(), []
    for seed in seeds:
        (folder / str(seed)).mkdir()
        try:
            found[check(seed, folder / str(seed))] += 1
        except AssertionError as error:
            faults.append(str(error)[:600])
        shutil.rmtree(folder / str(seed))
    assert not faults, "\n\n".join(faults)
    return found


@pytest.mark.parametrize(
    "batch", [pytest.param(b, marks=[pytest.mark.slow] * (b > 1)) for b in range(BATCHES)]
)
def test_odd_and_damaged_files(tmp_path, batch):
    found = check_all(range(batch * BATCH, (batch + 1) * BATCH), tmp_path)
    assert min(found["built"], found["refused"]) > 2


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(WILD_BATCHES))
def test_bytes_that_changed(tmp_path, batch):
    """In a process of its own, which HDF5 may end: it has no checksums."""
    seeds = [WILD_SEED + batch * BATCH, WILD_SEED + (batch + 1) * BATCH]
    code = (
        "import pathlib, sys, pytest, test_fuzz\n"
        "with pytest.MonkeyPatch.context() as patch:\n"
        "    test_fuzz.cut_small(patch)\n"
        f"    print(test_fuzz.check_all(range(*{seeds}), pathlib.Path(sys.argv[1])))"
    )
    here = pathlib.Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here}"}
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-6000:]
    print(done.stdout)


@pytest.mark.slow
def test_soma_experiments(tmp_path):
    found = check_all(range(SOMA_SEED, SOMA_SEED + BATCH), tmp_path)
    assert min(found["built"], found["refused"]) > 2


def _write_two(folder) -> dict:
    counts = np.random.default_rng(0).poisson(1.0, (30, 9))
    write.h5ad(folder / "a.h5ad", write.cells(counts))
    write.h5ad(folder / "b.h5ad", write.cells(counts + 1))
    return {"h5ad": f"{folder}/a.h5ad,{folder}/b.h5ad"}


@pytest.mark.parametrize("at", ["reading cells", "ranking genes"])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch, at):
    settings = dataclasses.replace(SETTINGS, **_write_two(tmp_path))
    run = build.workers.run

    def replaced(do, pieces, works, what, **by):
        if what == at:
            write.h5ad(tmp_path / "new", write.cells(np.full((30, 9), 7)))
            os.replace(tmp_path / "new", tmp_path / "b.h5ad")
        run(do, pieces, works, what, **by)

    monkeypatch.setattr(build.workers, "run", replaced)
    with pytest.raises(ValueError, match=r"b\.h5ad has changed while it was read; build again"):
        build.build(settings, tmp_path / "out" / "corpus")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "a.h5ad").symlink_to(tmp_path / "gone.h5ad")
    settings = dataclasses.replace(SETTINGS, h5ad=str(tmp_path / "a.h5ad"))
    with pytest.raises(ValueError, match=r"a\.h5ad: no file .*give one that is there"):
        build.build(settings, tmp_path / "out" / "corpus")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("at", [shards.MANIFEST, shards.VOCABULARY, shards.OBS, shards.GENES])
def test_killed_while_a_file_of_the_corpus_is_written(tmp_path, monkeypatch, at, share):
    """What stands there at the kill is no corpus, and the next build makes the whole one."""
    settings = dataclasses.replace(SETTINGS, **_write_two(tmp_path))
    whole = build.build(settings, tmp_path / "whole")
    out = tmp_path / "corpus"

    class Killed(BaseException):
        pass

    def killed(method, path_of):
        def write_a_part(*given, **options):
            method(*given, **options)
            path = pathlib.Path(path_of(*given))
            if path.name == at:
                os.truncate(path, int(path.stat().st_size * share))
                raise Killed
        return write_a_part

    with monkeypatch.context() as patch:
        write_text = killed(pathlib.Path.write_text, lambda path, _: path)
        patch.setattr(pathlib.Path, "write_text", write_text)
        to_parquet = killed(pd.DataFrame.to_parquet, lambda _, path: path)
        patch.setattr(pd.DataFrame, "to_parquet", to_parquet)
        with pytest.raises(Killed):
            build.build(settings, out)
    assert not out.exists()
    with pytest.raises(ValueError, match="no corpus"):
        shards.Corpus.open(out)
    assert build.build(settings, out).manifest == whole.manifest
    assert inspect.verify(out) == [] and not out.with_name("corpus.partial").exists()
