"""Heads and whole training steps -> times and memory side by side: python -m experiments.bench

With a group and a case as arguments, prints the memory of that case alone.
"""

import json
import pathlib
import platform
import sys

import jax
from absl import app, flags

from configs import default
from kernels.cab import bench, shapes
from scaling.pretrain.bench import one_cell, steps
from scaling.pretrain.step import RunSettings

OUT = flags.DEFINE_string("out", "runs/bench.json", "file that gets the record")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed")
CELLS = flags.DEFINE_integer("cells", 4, "cells of a batch")
ONLY = flags.DEFINE_string("only", "", "measure the groups whose title holds this")


def main(arguments: list[str]) -> None:
    """Measures all groups, or one case."""
    run, cells = RunSettings.from_config(default.get_config()), CELLS.value
    genes = shapes.SHAPES["gf-v1-10m"].V
    groups = {
        f"training step of gf-v1-10m, {cells} cells": steps(run, genes, cells),
        "gradients of gf-v1-10m, 1 cell": one_cell(run, genes),
        **bench.heads(cells),
    }
    if len(arguments) == 3:
        print(json.dumps(bench.memory(groups[arguments[1]][arguments[2]])))
        return
    chosen = {title: group for title, group in groups.items() if ONLY.value in title}
    if not chosen:
        raise app.UsageError(f"no group's title holds {ONLY.value!r}; there are {list(groups)}")
    alone = [sys.executable, "-m", "experiments.bench", f"--cells={cells}"]
    record = {
        "machine": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {platform.machine()}",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "groups": bench.measure(chosen, ROUNDS.value, alone),
    }
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1))
    print(bench.table(record), f"written to {path}", sep="\n")


if __name__ == "__main__":
    app.run(main)
