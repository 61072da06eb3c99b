"""Losses, training steps, corpora -> times and memory side by side: python -m experiments.bench

With a group and a case as arguments, prints the memory of that case alone.
"""

import json
import pathlib
import sys

from absl import app, flags

from configs import default
from kernels.cab import bench, shapes
from scaling.corpus import bench_report
from scaling.corpus.bench import Cells
from scaling.pretrain.bench import corpora as of_corpora
from scaling.pretrain.bench import one_cell, steps
from scaling.settings import Settings

OUT = flags.DEFINE_string("out", "runs/bench.json", "file that gets the record")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed")
CELLS = flags.DEFINE_integer("cells", 4, "cells of a batch")
ONLY = flags.DEFINE_string("only", "", "measure the groups whose title holds this")
H5AD = flags.DEFINE_string("h5ad", "", "real cells for the corpora; '' simulates them")
CORPUS_CELLS = flags.DEFINE_integer("corpus_cells", 20_000, "cells of the corpora")
MEMORY_CELLS = flags.DEFINE_list("memory_cells", ["20000"], "cells of the builds watched")


def main(arguments: list[str]) -> None:
    """Measures all groups, or one case."""
    settings, count = Settings.from_config(default.get_config()), CELLS.value
    run, genes = settings.run, shapes.SHAPES["gf-v1-10m"].V
    groups = {
        f"training step of gf-v1-10m, {count} cells": steps(run, genes, count),
        "gradients of gf-v1-10m, 1 cell": one_cell(run, genes),
        **bench.heads(count),
    }
    if len(arguments) == 3:
        print(json.dumps(bench.memory(groups[arguments[1]][arguments[2]])))
        return
    path = pathlib.Path(OUT.value)
    cells = Cells(path.with_suffix(".cells"), H5AD.value, CORPUS_CELLS.value, settings.data)
    corpora = of_corpora(cells, run, ROUNDS.value, [int(size) for size in MEMORY_CELLS.value])
    titles = [title for title in (*groups, *corpora) if ONLY.value in title]
    if not titles:
        raise app.UsageError(f"no title holds {ONLY.value!r}; there are {[*groups, *corpora]}")
    alone = [sys.executable, "-m", "experiments.bench", f"--cells={count}"]
    record = {
        **bench.machine(),
        "groups": bench.measure({t: groups[t] for t in groups if t in titles}, ROUNDS.value, alone),
        "corpora": {t: corpora[t]() for t in corpora if t in titles},
    }
    cells.clear()
    bench_report.write(record, path)
    print(bench.table(record), bench_report.table(record["corpora"]), sep="\n")


if __name__ == "__main__":
    app.run(main)
