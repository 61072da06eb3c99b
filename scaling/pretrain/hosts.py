"""Flags or a cluster's environment -> the hosts of one job, joined; and what they agree on."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

STOPPED = 75  # exit status of a run that was asked to stop and saved; EX_TEMPFAIL of sysexits.h

_asked = threading.Event()  # SIGTERM came


class Stopped(Exception):
    """A run was asked to stop by SIGTERM, and its state is saved."""


def join(coordinator: str, processes: int, process: int, timeout: int) -> None:
    """Joins the processes of one job; a machine that is no part of a cluster is a job of its own.

    Call it before anything is computed. Slurm, Open MPI, Cloud TPU and GKE are found out by JAX.

    Args:
      coordinator: "host:port" of process 0, or "" to find it out, and with it the rest.
      processes: of the job.
      process: number of this one, from 0.
      timeout: seconds to wait for the others at the start, and, 100 at most, for one that no longer
        answers; JAX then ends the process, and says so.

    Raises:
      ValueError: some of what belongs together is missing.
    """
    named = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": min(timeout, 100)}
    if coordinator:
        if not 0 <= process < processes or ":" not in coordinator:
            raise ValueError(
                f"--coordinator={coordinator} --processes={processes} --process={process}; give "
                "host:port of process 0, their number, and this one's from 0"
            )
        if processes == 1:
            return
        named |= {"num_processes": processes, "process_id": process}
        named["coordinator_address"] = coordinator
        _tell(
            f"process {process} of {processes} waits {timeout} s for the others at {coordinator}; "
            "start all with the same --coordinator and --processes, and see that its port is open"
        )
    elif (processes, process) != (1, 0):
        raise ValueError(
            f"--processes={processes} --process={process} without --coordinator; give host:port of "
            "process 0 too"
        )
    try:
        jax.distributed.initialize(**named)
    except ValueError as error:  # what JAX says where it finds no cluster
        if coordinator or "coordinator_address" not in str(error):
            raise
        return
    if jax.process_count() > 1:
        _tell(f"{jax.process_count()} processes share {jax.device_count()} devices")


def first() -> bool:
    """Whether this process is the one that writes what all would write alike."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def one_by_one(do: Callable[[], object]):
    """`do` of the first process, then of the others, which find what it left on the shared disk.

    Where it fails in one of them it fails in all: none waits for another that has ended.

    Raises:
      ValueError: another process could not do it, and has said why.
    """
    done = fault = None
    for mine in (first(), not first()):
        if mine:
            try:
                done = do()
            except (ValueError, OSError) as error:
                fault = error
        if not all_agree(fault is None):
            raise fault or ValueError("another process of the job ended; its message says why")
    return done


def wait(what: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def all_agree(fact: bool) -> bool:
    """Whether a fact holds in every process."""
    if jax.process_count() == 1:
        return fact
    return bool(np.all(multihost_utils.process_allgather(np.bool_(fact))))


@contextlib.contextmanager
def stop_signal() -> Iterator[Callable[[int], bool]]:
    """Yields whether a run is to stop after a step, the same in all processes.

    SIGTERM to any of them asks for it; in a job of one process, one that comes in a run's last step
    stops the next run. It must be called at every step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # signals reach the main thread alone
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    try:
        yield lambda step: _asked.is_set()
    except Stopped:
        _asked.clear()
        raise
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
