"""Several processes train one run as one process does, and end with a message when one is lost."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_loop import column, params_of, train

from scaling.pretrain import hosts, loop, sharding
from scaling.pretrain.loop import pretrain

HERE = pathlib.Path(__file__).parent
OFTEN = {"checkpoint_every": 2, "steps": 8}  # 128 of 60 cells: batches of two epochs too
SETTINGS = train(**OFTEN)
PROCESS = """
import dataclasses, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import jax
import test_hosts
from experiments.launch import report_errors
from scaling.corpus.shards import Corpus
from scaling.pretrain import hosts, loop, sharding

def run():
    hosts.join(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]), int(sys.argv[8]))
    corpus, folder = Corpus.open(pathlib.Path(sys.argv[2])), pathlib.Path(sys.argv[3])
    devices = sharding.DeviceSettings(*map(int, sys.argv[7].split(",")))
    settings = dataclasses.replace(test_hosts.train(**test_hosts.OFTEN), devices=devices)
    train = dataclasses.replace(settings.train, steps=int(sys.argv[9]))
    loop.pretrain(dataclasses.replace(settings, train=train), corpus, folder)
report_errors(run)
"""


def start(corpus, folder, count, each=1, fsdp=1, tensor=1, only=None, timeout=120, steps=8):
    """Processes of one job, each with some simulated devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={each}"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "XLA_FLAGS": flags}
    found = []
    for number in range(count) if only is None else only:
        given = [HERE, corpus.folder, folder, address, count, number, f"{fsdp},{tensor}"]
        given += [timeout, steps]
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = (folder.parent / f"{folder.name}.{number}.log").open("w")
        found.append(
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, *map(str, given)],
                stdout=log, stderr=log, env=environment,
            )
        )
        log.close()
    return found


def log_of(folder: pathlib.Path, number: int) -> str:
    return (folder.parent / f"{folder.name}.{number}.log").read_text()


def statuses(processes, seconds: float = 300) -> list[int]:
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(end - time.monotonic(), 1)) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory) -> pathlib.Path:
    """The run of one process and one device."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
        pretrain(SETTINGS, tiny_corpus, folder)
    return folder


def assert_the_same_run(folder: pathlib.Path, whole: pathlib.Path, corpus) -> None:
    for name in ("train/loss", "held_out/loss"):
        mine, one = column(folder, name), column(whole, name)
        assert mine.keys() == one.keys()
        np.testing.assert_allclose(list(mine.values()), list(one.values()), 2e-5)
    mine, one = params_of(folder, corpus), params_of(whole, corpus)
    for params in (mine, one):
        del params["layer_0"]["attention"]["key"]["bias"]  # a softmax does not see it: noise
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4), mine, one)
    counts = ("cells", "tokens", "exposures", "padding", "hash")
    mine, one = (json.loads((f / loop.DONE).read_text()) for f in (folder, whole))
    assert {name: mine[name] for name in counts} == {name: one[name] for name in counts}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "each", "fsdp", "tensor"), [(2, 1, 1, 1), (2, 2, 1, 4), (4, 1, 2, 1)]
)
def test_processes_train_what_one_does(count, each, fsdp, tensor, whole, tiny_corpus, tmp_path):
    """Also where two hosts hold the same cells, and the last batches are of two epochs."""
    folder = tmp_path / "run"
    assert statuses(start(tiny_corpus, folder, count, each, fsdp, tensor)) == [0] * count
    assert f"{count} processes share {count * each} devices" in log_of(folder, 1)
    assert_the_same_run(folder, whole, tiny_corpus)
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_another_number_goes_on(
    whole, tiny_corpus, tmp_path
):
    folder = tmp_path / "run"
    processes = start(tiny_corpus, folder, 2, timeout=60)
    end = time.monotonic() + 240
    while not {"2", "4"} & {p.name for p in (folder / loop.CHECKPOINTS).glob("?")}:
        assert time.monotonic() < end and processes[0].poll() is None, log_of(folder, 0)
        time.sleep(0.01)
    processes[1].kill()
    processes[1].wait()
    assert statuses(processes[:1])[0] not in (0, hosts.STOPPED)
    assert "error" in log_of(folder, 0).lower()
    assert not (folder / loop.DONE).exists()
    pretrain(SETTINGS, tiny_corpus, folder)
    assert_the_same_run(folder, whole, tiny_corpus)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_the_same_step_of_all(tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    processes = start(tiny_corpus, folder, 2, steps=100)
    end = time.monotonic() + 240
    while not column(folder, "train/loss"):
        assert time.monotonic() < end and processes[0].poll() is None, log_of(folder, 0)
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGTERM)
    assert statuses(processes) == [hosts.STOPPED] * 2, log_of(folder, 0)
    saved = max(int(p.name) for p in (folder / loop.CHECKPOINTS).iterdir())
    assert all(f"saved at step {saved} of 100" in log_of(folder, k) for k in (0, 1))
    assert max(column(folder, "train/loss")) == saved < 100 and not (folder / loop.DONE).exists()


@pytest.mark.slow
def test_a_process_that_waits_alone_says_so_and_ends(tiny_corpus, tmp_path):
    folder = tmp_path / "run"
    status = statuses(start(tiny_corpus, folder, 2, only=[1], timeout=5), 120)
    said = log_of(folder, 1)
    assert status != [0] and "process 1 of 2 waits 5 s for the others at localhost:" in said
    assert "DEADLINE_EXCEEDED" in said
    assert not folder.exists()


@pytest.mark.parametrize(
    ("coordinator", "processes", "process"), [("host:1", 2, 2), ("host", 2, 0), ("host:1", 0, 0)]
)
def test_flags_that_do_not_fit_are_refused(coordinator, processes, process):
    with pytest.raises(ValueError, match="give host:port of process 0, their number"):
        hosts.join(coordinator, processes, process, 1)


@pytest.mark.parametrize(("processes", "process"), [(2, 0), (1, 1)])
def test_a_part_of_a_job_does_not_run_alone_for_want_of_its_coordinator(processes, process):
    with pytest.raises(ValueError, match="without --coordinator; give host:port of process 0"):
        hosts.join("", processes, process, 1)


@pytest.mark.slow
def test_what_one_process_refuses_ends_all(whole, tiny_corpus, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    assert statuses(start(tiny_corpus, tmp_path / "run", 2, steps=10), 100) == [2, 2]
    assert "holds another run" in log_of(tmp_path / "run", 0)
    assert "another process of the job ended; its message" in log_of(tmp_path / "run", 1)


def test_every_place_of_a_batch_is_some_devices():
    mesh = sharding.make_mesh(sharding.DeviceSettings(), 16)
    assert hosts.first() and hosts.all_agree(True) and not hosts.all_agree(False)
    np.testing.assert_array_equal(sharding.host_places(16, mesh), np.arange(16))


@pytest.mark.slow
def test_a_study_on_two_processes_finds_what_one_finds(tmp_path):
    """The whole way: corpus, runs, scores and report, each written once."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        given = [f"--coordinator=localhost:{free.getsockname()[1]}", "--processes=2"]
    command = [sys.executable, "-m", "experiments.study", "--config=configs/smoke.py"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "XLA_FLAGS": ""}

    def study(name, *more):
        log = (tmp_path / f"{name}.{len(more) and more[-1][-1]}.log").open("w")
        with log:
            return subprocess.Popen(
                [*command, f"--workdir={tmp_path / name}", *more], cwd=HERE.parent,
                env=environment, stdout=log, stderr=log,
            )

    both = [study("two", *given, f"--process={number}") for number in range(2)]
    assert statuses(both) == [0, 0], (tmp_path / "two.0.log").read_text()[-2000:]
    assert statuses([study("one")]) == [0]
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "scores.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    names = ("run", "dataset", "score", "read_from", "positions", "cells", "kind")
    assert [[row.get(n) for n in names] for row in two] == [
        [row.get(n) for n in names] for row in one
    ]
    for mine, theirs in zip(two, one, strict=True):
        if mine["kind"] != "pretrained":
            unscored = mine["value"] is theirs["value"] is None
            assert unscored or mine["value"] == pytest.approx(theirs["value"], rel=1e-5, abs=1e-6)
        else:
            assert mine["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=1e-3)
    assert (tmp_path / "two" / "report.html").stat().st_size > 10_000
    assert "Report:" in (tmp_path / "two.0.log").read_text()
    assert "Report:" not in (tmp_path / "two.1.log").read_text()
