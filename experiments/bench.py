"""Losses, steps, corpora, fits -> times and memory: python -m experiments.bench [GROUP CASE]"""

import dataclasses
import functools
import json
import pathlib
import sys

from absl import app, flags

from configs import default, quickstart
from kernels.cab import bench, shapes
from scaling import prepare
from scaling.analyse import bench as fitting
from scaling.corpus import bench_report
from scaling.corpus.bench import Cells
from scaling.evaluate import bench as evaluation
from scaling.pretrain import whole_steps
from scaling.pretrain.bench import corpora, one_cell, steps
from scaling.settings import Settings

OUT = flags.DEFINE_string("out", "runs/bench.json", "file that gets the record")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed")
CELLS = flags.DEFINE_integer("cells", 4, "cells of a batch")
ONLY = flags.DEFINE_string("only", "", "measure what has this in its title")
H5AD = flags.DEFINE_string("h5ad", "", "real cells for the corpora and to embed; '' simulates them")
CORPUS_CELLS = flags.DEFINE_integer("corpus_cells", 20_000, "cells of the corpora")
MEMORY_CELLS = flags.DEFINE_list("memory_cells", ["20000"], "cells of what is watched")


def main(arguments: list[str]) -> None:
    """Measures all groups, or prints the memory of one case alone."""
    count, rounds = CELLS.value, ROUNDS.value
    configs = {"gf-v1-10m": default, "quickstart": quickstart}
    models = {name: Settings.from_config(of.get_config()) for name, of in configs.items()}
    first, genes = models["gf-v1-10m"], shapes.SHAPES["gf-v1-10m"].V
    groups = {
        f"training step of gf-v1-10m, {count} cells": steps(first.run, genes, count),
        "gradients of gf-v1-10m, 1 cell": one_cell(first.run, genes),
        **bench.heads(count),
    }
    if len(arguments) == 3:
        print(json.dumps(bench.memory(groups[arguments[1]][arguments[2]])))
        return
    path = pathlib.Path(OUT.value)
    cells = Cells(path.with_suffix(".cells"), H5AD.value, CORPUS_CELLS.value, first.data)
    rows = whole_steps.rows(models, genes, count, prepare.corpus_of, cells.folder, rounds)
    unlabelled = dataclasses.replace(first.data, h5ad=H5AD.value, cell_type="", batch="", donor="")
    embedded = dataclasses.replace(first, data=unlabelled)
    of_cells = functools.partial(prepare.corpus_of, embedded, cells.folder / "embedded")
    sizes = [int(size) for size in MEMORY_CELLS.value]
    model = dataclasses.asdict(first.run.model)
    rows |= evaluation.rows("gf-v1-10m", model, genes, of_cells, rounds, sizes)
    rows |= fitting.rows(rounds)
    rows |= corpora(cells, first.run, rounds, sizes)
    titles = [title for title in (*groups, *rows) if ONLY.value in title]
    if not titles:
        raise app.UsageError(f"no title holds {ONLY.value!r}; there are {[*groups, *rows]}")
    alone = [sys.executable, "-m", "experiments.bench", f"--cells={count}"]
    some = {title: group for title, group in groups.items() if title in titles}
    record = {**bench.machine(), "groups": bench.measure(some, rounds, alone)}
    record["rows"] = {title: rows[title]() for title in rows if title in titles}
    cells.clear()
    bench_report.write(record, path)
    print(bench.table(record), bench_report.table(record["rows"]), sep="\n")


if __name__ == "__main__":
    app.run(main)
