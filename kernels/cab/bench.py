"""Cases to be timed -> seconds side by side, memory in fresh processes; heads of all shapes.

Times are only compared within one run: the cases of a group take turns, so that a busy machine
slows all of them. `experiments/bench.py` adds whole training steps and writes the record.
"""

import contextlib
import ctypes
import os
import pathlib
import platform
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from kernels.cab import api, shapes
from kernels.cab.reference import LOG_FLOOR, NORM_FLOOR


class Program(NamedTuple):
    """A compiled program and a function that runs it once and returns its outputs."""

    compiled: jax.stages.Compiled
    run: Callable[[], Any]


Case = Callable[[], Program]  # compiles only when it is called
Groups = dict[str, dict[str, Case]]  # the first of a group is what the others are divided by


def heads(cells: int) -> Groups:
    """Value and gradients of the loss alone, for each shape, objective and implementation.

    Args:
      cells: of a batch; the reference, which builds arrays of B x M x V, gets one cell.
    """
    kernels = {"tpu": ["pallas_tpu"], "gpu": ["pallas_gpu"]}
    implementations = ["blocked", *kernels.get(jax.default_backend(), [])]
    groups = {}
    for name, shape in shapes.SHAPES.items():
        groups[f"head of {name}, {cells} cells"] = {
            f"{objective}, {implementation}": _head(shape, cells, objective, implementation)
            for implementation in implementations
            for objective in ("mlm", "cab")
        }
        groups[f"head of {name}, 1 cell"] = {
            f"cab, {implementation}": _head(shape, 1, "cab", implementation)
            for implementation in ("reference", *implementations)
        }
    return groups


def _head(shape: shapes.Shape, cells: int, objective: str, implementation: str) -> Case:
    def case() -> Program:
        *arrays, labels, known = map(jnp.asarray, shapes.draw(shape, cells))

        def loss(hidden, embedding, bias):
            arrays = hidden, embedding, bias, labels
            if objective == "mlm":
                out = api.masked_lm_loss(*arrays, implementation=implementation)
            else:
                out = api.cab_loss(*arrays, known, implementation=implementation)
            return out.cross_entropy + out.similarity

        compiled = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*arrays).compile()
        return Program(compiled, lambda: compiled(*arrays))

    return case


def literal_cab(hidden_BxLxD, embedding_VxD, bias_V, tokens_BxL, selected_BxL):
    """The loss as it is published, over all positions: what the kernels save is measured on it.

    Geneformer-CAB, bioRxiv 10.1101/2025.11.04.686458: known rows are one-hot, and every array is
    B x L x V. Returns the sums of the recalibrated cross-entropy and of the cosines of all pairs
    of which the first is masked.
    """
    selected_BxLx1 = selected_BxL[..., None]
    logits_BxLxV = jnp.einsum("bld,vd->blv", hidden_BxLxD, embedding_VxD) + bias_V
    one_hot_BxLxV = jax.nn.one_hot(tokens_BxL, len(bias_V), dtype=logits_BxLxV.dtype)
    P_BxLxV = jnp.where(selected_BxLx1, jax.nn.softmax(logits_BxLxV), one_hot_BxLxV)
    known_Bx1xV = jnp.where(selected_BxLx1, 0.0, one_hot_BxLxV).max(1, keepdims=True)
    survives_BxLxV = jnp.cumprod(jnp.where(selected_BxLx1, 1.0 - P_BxLxV, 1.0), axis=1)
    before_BxLxV = jnp.roll(survives_BxLxV, 1, axis=1).at[:, 0].set(1.0)
    Q_BxLxV = P_BxLxV * before_BxLxV * (1.0 - known_Bx1xV)
    Q_BxLxV = Q_BxLxV / jnp.maximum(Q_BxLxV.sum(-1, keepdims=True), LOG_FLOOR)
    nll_BxL = -jnp.log(jnp.maximum((Q_BxLxV * one_hot_BxLxV).sum(-1), LOG_FLOOR))
    square_BxLx1 = (Q_BxLxV**2).sum(-1, keepdims=True)
    some_BxLx1 = jnp.where(square_BxLx1 > NORM_FLOOR**2, square_BxLx1, NORM_FLOOR**2)
    rows_BxLxV = Q_BxLxV / jnp.sqrt(some_BxLx1)
    cosine_BxLxL = jnp.triu(jnp.einsum("biv,bjv->bij", rows_BxLxV, rows_BxLxV), 1)
    return jnp.where(selected_BxL, nll_BxL, 0.0).sum(), (cosine_BxLxL * selected_BxLx1).sum()


def seconds(group: dict[str, Case], rounds: int) -> dict[str, dict[str, float]]:
    """Least and median seconds of each case, the cases taking turns; the first call is left out."""
    programs = {name: case() for name, case in group.items()}
    taken = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program.run())
            if turn:
                taken[name].append(time.perf_counter() - start)
    return {
        name: {"least": min(times), "median": statistics.median(times)}
        for name, times in taken.items()
    }


def memory(case: Case) -> dict[str, int]:
    """Bytes of one case; to be called in a process that has run nothing else.

    Returns:
      process_before, process_peak: resident set of this process, before and at its peak. Compiling
        counts, but what it leaves unused in the heap is given back before the program runs.
      temporary: what the compiled program holds beside inputs and outputs.
      device_peak: of the accelerator, where it says so.
    """
    jax.block_until_ready(jax.jit(jnp.square)(jnp.ones(8)))  # starts the runtime
    before = _peak_of_process()
    program = case()
    with contextlib.suppress(OSError, AttributeError):  # glibc; elsewhere nothing is given back
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    jax.block_until_ready(program.run())
    found = {
        "process_before": before,
        "process_peak": _peak_of_process(),
        "temporary": program.compiled.memory_analysis().temp_size_in_bytes,
    }
    of_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in of_device:
        found["device_peak"] = of_device["peak_bytes_in_use"]
    return found


def _peak_of_process() -> int:
    """Bytes. On Linux not from getrusage, which hands a parent's peak on to its children."""
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes
    lines = status.read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(
    groups: Groups, rounds: int, alone: Callable[[str, str], dict]
) -> dict[str, dict[str, dict]]:
    """Seconds and bytes of every case, and their ratios to the first case of the group.

    Args:
      groups: the cases.
      rounds: how often each is timed.
      alone: `memory` of the case of a group and a name, called in a fresh process.
    """
    found = {}
    for title, group in tqdm(groups.items(), desc="bench", unit="group"):
        times = seconds(group, rounds)
        rows = {}
        for name in group:
            rows[name] = {"seconds": times[name], "bytes": alone(title, name)}
        first = rows[next(iter(rows))]
        for row in rows.values():
            row["ratios"] = {
                "seconds": row["seconds"]["least"] / first["seconds"]["least"],
                "process_peak": row["bytes"]["process_peak"] / first["bytes"]["process_peak"],
                "temporary": row["bytes"]["temporary"] / max(first["bytes"]["temporary"], 1),
            }
        found[title] = rows
    return found


def machine() -> dict[str, str]:
    """What a record was measured on."""
    devices = f"{jax.devices()[0].device_kind} x {jax.device_count()}"
    return {
        "machine": f"{devices}, {os.cpu_count()} cores, {platform.machine()}",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def table(record: dict) -> str:
    """The record as lines of text: seconds, ratios to the first case of a group, bytes."""
    lines = [f"{record['machine']}, jax {record['jax']}"]
    for title, rows in record["groups"].items():
        lines.append(title)
        for name, row in rows.items():
            peak, temporary = row["bytes"]["process_peak"], row["bytes"]["temporary"]
            lines.append(
                f"  {name:20} {row['seconds']['least']:9.4f} s  x{row['ratios']['seconds']:<7.3f}"
                f" process {peak / 1e9:6.2f} GB  temporary {temporary / 1e6:9.1f} MB"
            )
    return "\n".join(lines)
