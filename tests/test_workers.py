"""A build on several processes: the same corpus, after a worker or the whole build was killed."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import filelock
import numpy as np
import pytest
import scipy.sparse as sp
from dask.distributed import LocalCluster
from test_build import SETTINGS

from scaling.corpus import build, pieces, workers
from scaling.corpus.simulate import Simulation, simulate

KILLED = """
import os, sys, pathlib
import test_workers
from scaling.corpus import build, pieces
read, done = pieces.read, []
def killed(piece, work):
    if len(done) == int(sys.argv[3]):
        os._exit(9)
    read(piece, work)
    done.append(piece)
pieces.read = killed
settings = test_workers.settings(sys.argv[1])
build.build(settings, pathlib.Path(sys.argv[2]))
"""


def settings(h5ad, **changes) -> build.CorpusSettings:
    fields = {"h5ad": str(h5ad), "donor": "donor", "cells_per_shard": 40, "medians": "sketch"}
    return dataclasses.replace(SETTINGS, **fields | changes)


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    simulate(path, Simulation(cells=230, genes=120, cell_types=3, donors=4, batches=2, programs=6))
    return path


@pytest.fixture(scope="module")
def alone(h5ad, tmp_path_factory):
    return build.build(settings(h5ad), tmp_path_factory.mktemp("alone") / "corpus")


def _assert_same(corpus, alone):
    assert corpus.manifest["checksums"] == alone.manifest["checksums"]
    assert corpus.manifest["settings"] == alone.manifest["settings"]
    assert sorted(p.name for p in corpus.folder.iterdir()) == sorted(
        p.name for p in alone.folder.iterdir()
    )


def stubborn(piece, work):
    """Reads a piece, but the first process that is given number 2 dies of it."""
    marker = work.folder / "died"
    if piece.number == 2 and not marker.exists():
        marker.touch()
        os._exit(9)
    pieces.read(piece, work)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(h5ad, alone, tmp_path):
    _assert_same(build.build(settings(h5ad, workers=2), tmp_path / "corpus"), alone)


@pytest.mark.slow
def test_a_scheduler_by_address_and_a_worker_that_dies(h5ad, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{pathlib.Path(__file__).parent}:{os.getcwd()}")
    monkeypatch.setattr(pieces, "read", stubborn)
    died = tmp_path / "corpus.partial" / "died"
    options = {"threads_per_worker": 1, "dashboard_address": ":0"}
    with LocalCluster(n_workers=2, **options) as cluster:
        address = settings(h5ad, scheduler=cluster.scheduler_address)
        corpus = build.build(address, tmp_path / "corpus")
    assert not died.exists() and (tmp_path / "corpus" / "died").exists()
    (tmp_path / "corpus" / "died").unlink()
    _assert_same(corpus, alone)


@pytest.mark.slow
def test_no_scheduler_answers(h5ad, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "TIMEOUT", "1s")
    with pytest.raises(ValueError, match="no dask scheduler answers at tcp://127.0.0.1:9"):
        build.build(settings(h5ad, scheduler="tcp://127.0.0.1:9"), tmp_path / "corpus")


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 3, 8])
def test_a_killed_build_goes_on_where_it_stopped(h5ad, alone, tmp_path, monkeypatch, after):
    out = tmp_path / "corpus"
    environment = {**os.environ, "PYTHONPATH": f"{pathlib.Path(__file__).parent}:{os.getcwd()}"}
    command = [sys.executable, "-c", KILLED, str(h5ad), str(out), str(after)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert not out.exists()
    (tmp_path / "corpus.partial" / ".tokens-00003.uint16.of-a-killed-process").touch()
    read, again = pieces.read, []
    monkeypatch.setattr(pieces, "read", lambda piece, work: again.append(read(piece, work)))
    _assert_same(build.build(settings(h5ad), out), alone)
    assert len(again) == 2 * 6 - after and list(tmp_path.iterdir()) == [out]


def test_work_of_other_settings_is_thrown_away(h5ad, alone, tmp_path, monkeypatch):
    out = tmp_path / "corpus"

    def interrupt(piece, work):
        pieces.positions(work.ids, ())
        if piece.number == 3:
            raise KeyboardInterrupt
        read(piece, work)

    read = pieces.read
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pieces, "read", interrupt)
        build.build(settings(h5ad, cells_per_shard=30), out)
    assert len(list((tmp_path / "corpus.partial").glob("scan-*"))) == 3
    (tmp_path / "corpus.partial" / ".tokens-00003.uint16.of-a-killed-process").touch()
    _assert_same(build.build(settings(h5ad), out), alone)


def test_two_builds_into_one_folder_are_refused(h5ad, tmp_path):
    (tmp_path / "corpus.partial").mkdir()
    with filelock.FileLock(tmp_path / "corpus.partial" / build.LOCK):
        with pytest.raises(ValueError, match="another build is writing .*/corpus; wait for it"):
            build.build(settings(h5ad), tmp_path / "corpus")
    assert len(build.build(settings(h5ad), tmp_path / "corpus").obs) == 230


def test_columns_of_one_gene_are_summed_and_others_left_out():
    counts = sp.csr_matrix(np.array([[1.0, 2, 0, 4, 5], [0, 0, 3, 0, 6]]))
    ids = np.array(["b", "a", "x", "b", None], object)
    places = pieces.positions(ids, ("a", "b", "c"))
    assert places.tolist() == [1, 0, -1, 1, -1]
    assert pieces.select(counts, places, 3).toarray().tolist() == [[2, 5, 0], [0, 0, 0]]
