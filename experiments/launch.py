"""Flags -> settings -> one stage of the library; what every entry point shares."""

import errno
import os
import pathlib
import re
import signal
import sys
import threading
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from scaling.pretrain import hosts
from scaling.settings import Settings


def launch(stage: Callable[[Settings, pathlib.Path], str], many_hosts: bool = False) -> None:
    """Runs stage(settings, workdir) and prints what it returns.

    Bad input ends with its message on stderr and exit status 2, without a traceback; a run that
    SIGTERM stopped, with status 75. Of many hosts the first one prints.
    """
    _give_threads_to_simulated_devices()
    if many_hosts:
        flags.DEFINE_string("coordinator", "", "host:port of process 0; '' finds it out")
        flags.DEFINE_integer("processes", 1, "of the job, with --coordinator")
        flags.DEFINE_integer("process", 0, "number of this one, with --coordinator")
        flags.DEFINE_integer("join_timeout", 300, "seconds to wait for another process")
    folder = flags.DEFINE_string("workdir", None, "folder that gets the results", required=True)
    config = config_flags.DEFINE_config_file("config", None, "a file of configs/")
    flags.mark_flag_as_required("config")

    def main(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected arguments {arguments[1:]}; options start with --")
        workdir = pathlib.Path(folder.value)
        if many_hosts:
            report_errors(_join)
        report_errors(lambda: stage(Settings.from_config(config.value), workdir))

    app.run(main, flags_parser=parse)


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags; an unknown one, or an unknown field of the config, is one message."""
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        # A config that raises is told with its traceback, whose last line says what is wrong.
        print(f"error: {_field(text) or text.splitlines()[-1]}", file=sys.stderr)
        sys.exit(2)


def _field(text: str) -> str:
    """What is said of a field that the config has not, in one line; "" of anything else."""
    near = re.search(r'Did you mean \\*"(.+?)\\*" instead of \\*"(.+?)\\*"', text)
    if near:
        return f"the config has no field {near[2]!r}; did you mean {near[1]!r}?"
    alone = re.fullmatch(r"[\"']*(\w+)[\"']*", text)
    return f"the config has no field {alone[1]!r}; configs/default.py has them all" if alone else ""


def _give_threads_to_simulated_devices() -> None:
    # XLA has one thread for each of them or each core; a step that sums over devices needs more,
    # or waits for itself until it is aborted.
    simulated = re.search(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if simulated:
        os.environ.setdefault("PJRT_NPROC", str(2 * int(simulated[1])))


def _join() -> None:
    given = flags.FLAGS
    hosts.join(given.coordinator, given.processes, given.process, given.join_timeout)


def report_errors(stage: Callable[[], str | None]) -> None:
    """Prints a stage's result, or what went wrong as one message."""
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every folder it opens
    try:
        result = stage()
        if result is not None and hosts.first():
            print(result)
    except hosts.Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(hosts.STOPPED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)  # a thread that compiles would not survive a longer end
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SCALING_TRACEBACK"):
            raise
        print(f"error: {error}{_remedy(error)}", file=sys.stderr, flush=True)
        if any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
            os._exit(2)  # threads of a save that failed wait for each other, and would for ever
        sys.exit(2)


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; make room and run the same command again: what is saved is whole"
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES):
        return "; give a --workdir that can be written to"
    return ""
