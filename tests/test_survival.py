"""Runs that are stopped, killed, out of disk or handed damaged checkpoints: to the same bits."""

import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_loop import SETTINGS, STEPS, assert_same_bits, interrupt, params_of, record, train

from scaling.pretrain import checkpoint, hosts, loop
from scaling.pretrain.loop import pretrain
from scaling.pretrain.writer import RunWriter

OFTEN = train(checkpoint_every=2)
HERE = pathlib.Path(__file__).parent
# Every run is a child of one process that has the libraries in memory.
FAMILY = """
import os, pathlib, sys
sys.path.insert(0, sys.argv[1])
import test_survival
from scaling.corpus.shards import Corpus
from scaling.pretrain import hosts, loop
corpus, folder = Corpus.open(sys.argv[2]), pathlib.Path(sys.argv[3])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        if line.strip() == "full":
            test_survival.fill_the_disk_at_step_5()
        try:
            loop.pretrain(test_survival.OFTEN, corpus, folder)
        except (hosts.Stopped, OSError) as error:
            print("said", error, flush=True)
            os._exit(hosts.STOPPED if isinstance(error, hosts.Stopped) else 2)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def whole(tiny_corpus, tmp_path_factory) -> pathlib.Path:
    """An undisturbed run that saves often."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(OFTEN, tiny_corpus, folder)
    return folder


class Family:
    """Runs of one folder, one after another, each a process."""

    def __init__(self, corpus, folder):
        command = [sys.executable, "-c", FAMILY, HERE, corpus.folder, folder]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )
        self.folder, self.child, self.said = folder, 0, ""

    def start(self, how: str = "") -> int:
        self.process.stdin.write(f"{how}\n")
        self.process.stdin.flush()
        self.child = int(self.process.stdout.readline())

    def wait_for(self, there) -> None:
        end = time.monotonic() + 300
        while not there():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.002)

    def steps(self) -> int:
        return max([row["step"] for row in record(self.folder)], default=-1)

    def status(self) -> int:
        line = self.process.stdout.readline()
        if line.startswith("said"):
            self.said, line = line, self.process.stdout.readline()
        return int(line)

    def end(self) -> None:
        self.process.communicate(timeout=60)


def started_and_left(folder: pathlib.Path, corpus, monkeypatch, steps: int = 9) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        interrupt(patch, steps, RuntimeError("power cut"))
        pretrain(OFTEN, corpus, folder)


def go_on_to_the_end(folder: pathlib.Path, whole: pathlib.Path, corpus) -> None:
    pretrain(OFTEN, corpus, folder)
    assert record(folder) == record(whole)
    assert_same_bits(params_of(folder, corpus), params_of(whole, corpus))


@pytest.mark.slow
def test_killed_at_any_moment_ten_times(whole, tiny_corpus, tmp_path):
    family, dice = Family(tiny_corpus, tmp_path), random.Random(0)
    seen = set()
    for kill in range(10):
        family.start()
        if kill:  # the first is killed while it imports, compiles or starts
            at = min(family.steps() + dice.randrange(1, 4), STEPS - 1)
            family.wait_for(lambda at=at: family.steps() >= at)
        time.sleep(dice.random() * 0.05)
        os.kill(family.child, signal.SIGKILL)
        assert family.status() == -signal.SIGKILL
        assert not (tmp_path / loop.DONE).exists()
        seen.update(p.name for p in (tmp_path / loop.CHECKPOINTS).glob("*"))
    assert len(seen) > 3
    family.start()
    assert family.status() == 0
    family.end()
    assert record(tmp_path) == record(whole)
    assert_same_bits(params_of(tmp_path, tiny_corpus), params_of(whole, tiny_corpus))


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_saves_the_step_it_is_at(whole, tiny_corpus, tmp_path):
    family = Family(tiny_corpus, tmp_path)
    family.start()
    family.wait_for(lambda: family.steps() >= 3)
    os.kill(family.child, signal.SIGTERM)
    assert family.status() == hosts.STOPPED == 75
    family.end()
    saved = max(int(p.name) for p in (tmp_path / loop.CHECKPOINTS).iterdir())
    assert f"asked to stop and is saved at step {saved} of {STEPS}; the same command" in family.said
    assert max(row["step"] for row in record(tmp_path)) == saved >= 3
    go_on_to_the_end(tmp_path, whole, tiny_corpus)


def test_a_signal_in_the_last_step_of_a_run_stops_the_next(tiny_corpus, tmp_path, monkeypatch):
    save = checkpoint.save

    def asked_in_the_last(checkpoints, name, step, *rest):
        if step == STEPS:
            os.kill(os.getpid(), signal.SIGTERM)
        save(checkpoints, name, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", asked_in_the_last)
        pretrain(OFTEN, tiny_corpus, tmp_path / "first")
    assert (tmp_path / "first" / loop.DONE).exists()
    with pytest.raises(hosts.Stopped, match="is saved at step 1 of"):
        pretrain(OFTEN, tiny_corpus, tmp_path / "second")
    pretrain(OFTEN, tiny_corpus, tmp_path / "second")


@pytest.mark.parametrize("name", [STEPS - 1, STEPS + 5])
def test_a_checkpoint_under_another_steps_name_is_not_believed(
    name, whole, tiny_corpus, tmp_path, capfd
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / loop.DONE).unlink()
    kept, moved = sorted(int(path.name) for path in (folder / loop.CHECKPOINTS).iterdir())
    (folder / loop.CHECKPOINTS / str(moved)).rename(folder / loop.CHECKPOINTS / str(name))
    go_on_to_the_end(folder, whole, tiny_corpus)
    said = capfd.readouterr().err
    assert f"step {name}: ValueError: it is of step {moved}" in said
    assert f"goes on from step {kept} of {STEPS}" in said


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        (loop.SETTINGS, None, f"has done.json, metrics.jsonl, checkpoints and no {loop.SETTINGS}"),
        (loop.SETTINGS, "{", "is damaged .*bring it back, or remove the run's folder"),
        (loop.SETTINGS, "{}", "is damaged .it has no hash.; bring it back"),
        (loop.DONE, "", "is damaged .*the run goes on from its last checkpoint"),
        (loop.DONE, '{"hash": "0123"}', "holds another run .hash 0123"),
        ("metrics.jsonl", '{"step": 1}\n[1, 2]\n', "line 2 is damaged .*remove the line"),
        ("metrics.jsonl", "\xff\n", "line 1 is damaged"),
        ("metrics.jsonl", "[]\n", "line 1 is damaged .it is no row"),
        (loop.CHECKPOINTS, "", "checkpoints is no folder"),
    ],
)
def test_a_folder_whose_files_are_damaged_is_refused(
    part, text, message, whole, tiny_corpus, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    if part not in (loop.SETTINGS, loop.DONE):
        (folder / loop.DONE).unlink()
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if text is not None:
        path.write_text(text, encoding="latin-1")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*")}
    with pytest.raises(ValueError, match=message):
        pretrain(OFTEN, tiny_corpus, folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*")} == before


def test_a_stop_signal_is_seen_and_taken_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(hosts.Stopped), hosts.stop_signal() as asked:
        assert not asked(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked(2)
        raise hosts.Stopped
    assert signal.getsignal(signal.SIGTERM) == before
    with hosts.stop_signal() as asked:
        assert not asked(1)


def cut_in_half(folder: pathlib.Path) -> None:
    """Every file of the weights."""
    for path in (folder / "params").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def without_weights(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "params")


def other_weights(folder: pathlib.Path) -> None:
    """As if a bit of them had changed, which the format may not notice: the sums differ."""
    path = folder / "about" / "metadata"
    about = json.loads(path.read_text())
    about["fingerprints"]["params"][3] ^= 1
    path.write_text(json.dumps(about))


def another_runs(folder: pathlib.Path) -> None:
    path = folder / "about" / "metadata"
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"run": "0123456789ab"}))


def empty(folder: pathlib.Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = [cut_in_half, without_weights, other_weights, another_runs, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_skipped(
    damage, whole, tiny_corpus, tmp_path, monkeypatch, capfd
):
    started_and_left(tmp_path, tiny_corpus, monkeypatch)
    damage(tmp_path / loop.CHECKPOINTS / "8")
    go_on_to_the_end(tmp_path, whole, tiny_corpus)
    said = capfd.readouterr().err
    assert "skipped, and now called *.unreadable: step 8: " in said and "from step 6" in said
    if damage is another_runs:
        assert "it is of another run, 0123456789ab" in said
    if damage is other_weights:
        assert "its params have changed since they were saved" in said
    assert (tmp_path / loop.CHECKPOINTS / "8.unreadable").is_dir()


def test_without_a_checkpoint_that_can_be_read_nothing_is_trained(
    tiny_corpus, tmp_path, monkeypatch
):
    started_and_left(tmp_path, tiny_corpus, monkeypatch)
    for step in ("6", "8"):
        without_weights(tmp_path / loop.CHECKPOINTS / step)
    before = record(tmp_path)
    with pytest.raises(ValueError, match="no checkpoint can be read .step 8: .*; step 6: .*remove"):
        pretrain(OFTEN, tiny_corpus, tmp_path)
    assert record(tmp_path) == before


@pytest.mark.parametrize("damage", [cut_in_half, other_weights])
def test_scores_are_never_those_of_damaged_weights(damage, whole, tiny_corpus, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    damage(tmp_path / "run" / loop.CHECKPOINTS / str(STEPS))
    with pytest.raises(ValueError, match=f"{STEPS} cannot be read .*; remove the run's done.json"):
        params_of(tmp_path / "run", tiny_corpus)
    (tmp_path / "run" / loop.DONE).unlink()
    go_on_to_the_end(tmp_path / "run", whole, tiny_corpus)


def fill_the_disk_at_step_5() -> None:
    """From then on no file grows beyond what a row of the record would need."""
    step, taken = loop.train_step, []

    def filling(*arguments):
        taken.append(1)
        if len(taken) == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        return step(*arguments)

    loop.train_step = filling
    RunWriter.write = lambda *_: None


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(whole, tiny_corpus, tmp_path):
    family = Family(tiny_corpus, tmp_path)
    family.start("full")
    assert family.status() == 2
    family.end()
    assert "could not be written" in family.said and "make room" in family.said
    with checkpoint.manager(tmp_path / loop.CHECKPOINTS) as checkpoints:
        assert checkpoints.latest_step() in (2, 4)  # the one that was written then may be lost
    pretrain(OFTEN, tiny_corpus, tmp_path)
    assert_same_bits(params_of(tmp_path, tiny_corpus), params_of(whole, tiny_corpus))


def test_scores_of_a_run_that_goes_on_leave_its_save_alone(whole, tiny_corpus, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    half = tmp_path / "run" / loop.CHECKPOINTS / "22.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "run" / loop.CHECKPOINTS / str(STEPS), half)
    assert_same_bits(params_of(tmp_path / "run", tiny_corpus), params_of(whole, tiny_corpus))
    assert half.is_dir()


def test_a_fingerprint_sees_every_bit(tiny_corpus):
    params = loop.initial_params(0, SETTINGS.model, 50)
    known = checkpoint.fingerprint(params)
    for k, leaf in enumerate(jax.tree.leaves(params)[:4]):
        for place in (0, leaf.size - 1):
            changed = jax.device_get(leaf).copy()
            changed.view("uint32").reshape(-1)[place] ^= 1 << 31
            leaves = jax.tree.leaves(params)
            leaves[k] = changed
            other = jax.tree.unflatten(jax.tree.structure(params), leaves)
            assert np.flatnonzero(checkpoint.fingerprint(other) != known).tolist() == [k]
    swapped = {"a": params["bias"].at[0].set(1.0), "b": params["bias"].at[1].set(1.0)}
    assert len(set(checkpoint.fingerprint(swapped).tolist())) == 2
