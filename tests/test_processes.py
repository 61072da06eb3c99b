"""Tasks in processes of their own: all are done, and one that crashes ends no other."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from scaling.pretrain import hosts
from scaling.sweeps import processes

HERE = pathlib.Path(__file__).parent


def mark(folder: pathlib.Path, name: str) -> None:
    """Counts the tasks that run beside it; "crash" kills its process, "raise" raises."""
    print(f"this is {name}", flush=True)
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "raise":
        raise KeyError("no such thing")
    beside = folder / f"{name}.running"
    beside.touch()
    time.sleep(0.3)
    (folder / f"{name}.done").write_text(str(len(list(folder.glob("*.running")))))
    beside.unlink()


def wait_for_the_end(folder: pathlib.Path) -> None:
    def save(*_):
        (folder / "saved").touch()
        sys.exit(hosts.STOPPED)

    signal.signal(signal.SIGTERM, save)
    (folder / "started").touch()
    threading.Event().wait(300)


def run(work, names, folder, count):
    tasks = {name: (folder, name) for name in names}
    return processes.at_once(work, tasks, count, {name: folder / f"{name}.txt" for name in names})


def test_a_crash_is_told_and_all_others_are_done(tmp_path):
    found = dict(run(mark, ["a", "crash", "b", "raise", "c"], tmp_path, 2))
    assert list(found) != [] and {name for name, fault in found.items() if not fault} == set("abc")
    assert found["crash"] == f"its process ended with signal SIGKILL; its log: {tmp_path}/crash.txt"
    assert found["raise"].startswith("its process ended with status 1; its log:")
    assert "KeyError: 'no such thing'" in (tmp_path / "raise.txt").read_text()
    assert "this is crash" in (tmp_path / "crash.txt").read_text()
    beside = {int((tmp_path / f"{name}.done").read_text()) for name in "abc"}
    assert beside <= {1, 2}


def test_sigterm_ends_all_processes_as_it_ends_a_run(tmp_path):
    def ask():
        wait_for(tmp_path / "started")
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    tasks = {name: (tmp_path,) for name in ("one", "two")}
    logs = dict.fromkeys(tasks, tmp_path / "log.txt")
    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(hosts.Stopped, match="the same command goes on"):
        list(processes.at_once(wait_for_the_end, tasks, 1, logs))
    assert (tmp_path / "saved").exists()  # by the first; the second never began
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = (
        f"import pathlib, sys; sys.path.insert(0, {str(HERE)!r})\n"
        "import test_processes as t\n"
        "if __name__ == '__main__':\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    logs = {'one': folder / 'log.txt'}\n"
        "    list(t.processes.at_once(t.wait_for_the_end, {'one': (folder,)}, 1, logs))\n"
    )
    (tmp_path / "start.py").write_text(script)
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path])}
    starter = subprocess.Popen([sys.executable, tmp_path / "start.py"], env=os.environ | paths)
    wait_for(tmp_path / "started")
    starter.kill()
    starter.wait()
    wait_for(tmp_path / "saved")  # what a process does as its last, when it is told to end
    assert (tmp_path / "saved").exists()


def wait_for(path: pathlib.Path) -> None:
    """Until there is such a file; a test that waits in vain fails and does not hang."""
    end = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} was never written"
        time.sleep(0.1)


def test_gpus_or_their_memory_are_shared_out(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7,8")
    given = [processes._share(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)]
    assert given == ["2,3", "5,7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    shares = [processes._share(slot, 3) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "3", "2"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.450"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert "CUDA_VISIBLE_DEVICES" not in processes._share(0, 2)


def test_cores_are_shared_out_unless_threads_were_asked_for(monkeypatch):
    monkeypatch.setattr(processes.os, "cpu_count", lambda: 8)
    for name in ("PJRT_NPROC", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert [processes._share(0, count)["PJRT_NPROC"] for count in (2, 3, 20)] == ["4", "2", "1"]
    monkeypatch.setenv("PJRT_NPROC", "16")  # of simulated devices, which need as many
    assert processes._share(0, 2)["PJRT_NPROC"] == "16"
    assert processes._share(0, 2)["OMP_NUM_THREADS"] == "4"


def test_jobs_of_a_cluster_end_each_for_itself(tmp_path):
    pytest.importorskip("submitit")
    (tmp_path / "there").mkdir()
    tasks = {name: (tmp_path / name,) for name in ("new", "there", "other")}
    found = dict(processes.submitted(
        pathlib.Path.mkdir, tasks, {"cluster": "local", "timeout_min": 5}, tmp_path / "jobs"
    ))  # fmt: skip
    assert {name for name, fault in found.items() if not fault} == {"new", "other"}
    assert "FileExistsError" in found["there"] and "its log:" in found["there"]
    assert (tmp_path / "new").is_dir() and (tmp_path / "other").is_dir()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cluster": "nowhere"}, "nowhere"),
        ({"cluster": "local", "minutes": 3}, "minutes"),
    ],
)
def test_what_no_cluster_knows_is_refused(tmp_path, given, message):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match=f"--submit=.*{message}"):
        list(processes.submitted(print, {}, given, tmp_path))


def test_without_submitit_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[slurm\]'"):
        list(processes.submitted(print, {}, {"cluster": "slurm"}, tmp_path))


def test_a_preempted_job_is_queued_again_with_its_arguments():
    pytest.importorskip("submitit")
    again = processes.Requeued(max).checkpoint(3, 8)
    assert again.function(*again.args) == 8
