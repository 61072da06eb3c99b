"""Tasks -> each done in a process of its own, on this machine or on Slurm; how each ended."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from scaling.pretrain import hosts

Tasks = dict[str, tuple]  # arguments by name
POLL = 2.0  # seconds between two looks at a cluster's queue


def at_once(
    work: Callable, tasks: Tasks, count: int, logs: dict[str, pathlib.Path]
) -> Iterator[tuple[str, str]]:
    """Calls work(*arguments) for every task, so many at a time; one crash ends no other.

    GPUs are shared out: each process has its part of them, or of the memory of one. SIGTERM ends
    all processes as it ends a run, and so do Ctrl-C and the end of this one.

    Args:
      work: a function of a module.
      tasks: in the order in which they are begun.
      count: processes at a time.
      logs: by name, the file that gets what a task's process prints.

    Yields:
      (name, "" or how its process ended without an answer), as each ends.

    Raises:
      hosts.Stopped: SIGTERM came, and all processes have ended.
    """
    context, waiting, running = multiprocessing.get_context("spawn"), list(tasks), {}
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        while waiting or running:
            while waiting and len(running) < count:
                name = waiting.pop(0)
                slot = min(set(range(count)) - {slot for _, slot, _ in running.values()})
                given = work, tasks[name], logs[name]
                process = context.Process(target=_child, args=given, name=name)
                with _environment(_share(slot, count)):
                    process.start()
                running[process.sentinel] = name, slot, process
            for sentinel in multiprocessing.connection.wait(list(running)):
                name, _, process = running.pop(sentinel)
                process.join()
                yield name, _fault(process.exitcode, logs[name])
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, _, process in running.values():
            process.terminate()
        for _, _, process in running.values():
            process.join()


def submitted(
    work: Callable, tasks: Tasks, parameters: dict, folder: pathlib.Path
) -> Iterator[tuple[str, str]]:
    """Calls work(*arguments) for every task as a job of a cluster, through submitit.

    A job that reaches its time limit or is preempted is queued again, by submitit, and goes on from
    its last checkpoint. Where this process is stopped, the jobs are cancelled.

    Args:
      work: a function of a module.
      tasks: to be done.
      parameters: `cluster`, "slurm" or another of submitit's names, and arguments of
        `submitit.AutoExecutor.update_parameters`.
      folder: gets submitit's files and logs.

    Yields:
      (name, "" or how its job ended), as each ends.

    Raises:
      ValueError: submitit is not installed, there is no such cluster, or a parameter it lacks.
      hosts.Stopped: SIGTERM came, and all jobs are cancelled.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError(
            "--submit needs submitit; install the extra: pip install -e '.[slurm]'"
        ) from error
    rest = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=rest.pop("cluster"))
        executor.update_parameters(**rest)
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
        raise ValueError(f"--submit={parameters}: {error}") from error
    before = signal.signal(signal.SIGTERM, _stop)
    running = {}
    try:
        with executor.batch():
            jobs = {name: executor.submit(Requeued(work), *given) for name, given in tasks.items()}
        running = dict(jobs)
        while running:
            for name, job in list(running.items()):
                if job.done():
                    del running[name]
                    fault = job.exception()
                    yield name, "" if fault is None else f"{fault}; its log: {job.paths.stderr}"
            time.sleep(POLL if running else 0)
    finally:
        signal.signal(signal.SIGTERM, before)
        for job in running.values():
            job.cancel()


class Requeued:
    """Work that submitit may queue again with the same arguments: it goes on where it stood."""

    def __init__(self, work: Callable):
        self._work = work

    def __call__(self, *given):
        return self._work(*given)

    def checkpoint(self, *given):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *given)


def _child(work: Callable, given: tuple, log: pathlib.Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C this process learns by SIGTERM
    try:
        work(*given)
    except hosts.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(hosts.STOPPED)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def _fault(status: int, log: pathlib.Path) -> str:
    if status == 0:
        return ""
    how = f"status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
    return f"its process ended with {how}; its log: {log}"


def _stop(*_) -> None:
    raise hosts.Stopped("asked to stop: runs were saved; the same command goes on from there")


def _share(slot: int, count: int) -> dict[str, str]:
    """Environment of one of so many processes: its GPUs and cores, no bar that fills the log."""
    # Threads beyond its cores would wait for those of others: XLA's, and those of BLAS.
    cores = str(max(1, os.cpu_count() // count))
    own = {"PJRT_NPROC": cores, "OMP_NUM_THREADS": cores}
    own = {name: os.environ.get(name, value) for name, value in own.items()}
    own["TQDM_MININTERVAL"] = "30"
    gpus = _gpus()
    if gpus and count <= len(gpus):
        each = len(gpus) // count
        own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * each : (slot + 1) * each])
    elif gpus:
        own["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / -(-count // len(gpus)):.3f}"
    return own


def _gpus() -> list[str]:
    """Names of the GPUs that this process may use; asks no library that would take their memory."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    try:
        found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(k) for k, line in enumerate(found.stdout.splitlines()) if line.startswith("GPU")]


@contextlib.contextmanager
def _environment(own: dict[str, str]):
    before = dict(os.environ)
    os.environ.update(own)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
