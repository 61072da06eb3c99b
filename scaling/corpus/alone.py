"""A function and its arguments -> what it returns in a fresh process, and what memory that took."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil

CODE = (
    "import importlib, json, sys\n"
    "module, name, arguments = json.loads(sys.argv[1])\n"
    "value = getattr(importlib.import_module(module), name)(*arguments)\n"
    "print(json.dumps(value), end='')"
)


def run(function: Callable, *arguments):
    """Calls a function of a module in a fresh process, whose own children import no main program.

    Args:
      function: of a module's top level; may print nothing.
      arguments: what JSON can hold, as can the value.

    Raises:
      RuntimeError: the process failed; its last words are in the message.
    """
    return _run(function, arguments, lambda process: process.wait())


def run_watched(function: Callable, *arguments):
    """Like `run`, and looks at the memory of the process and all of its children 20 times a second.

    Returns:
      value: the function's.
      memory: bytes. `all`: of the moment when the processes' resident sets were largest together;
        pages that several share are counted for each. `largest`: the largest of any one of them.
        `processes`: most at once.
    """
    memory = {"all": 0, "largest": 0, "processes": 0}

    def watch(process: subprocess.Popen) -> None:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            sizes = [_resident(one) for one in (root, *_children(root))]
            memory["all"] = max(memory["all"], sum(sizes))
            memory["largest"] = max(memory["largest"], *sizes)
            memory["processes"] = max(memory["processes"], len(sizes))
            time.sleep(0.05)

    return _run(function, arguments, watch), memory


def _run(function: Callable, arguments: tuple, wait: Callable[[subprocess.Popen], object]):
    call = json.dumps([function.__module__, function.__name__, arguments])
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        process = subprocess.Popen([sys.executable, "-c", CODE, call], stdout=out, stderr=error)
        try:
            wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        out.seek(0), error.seek(0)
        if process.returncode:
            raise RuntimeError(f"{function.__name__}: {error.read()[-2000:]}")
        return json.loads(out.read())


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0
