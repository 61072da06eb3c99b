"""Losses, steps, corpora, fits -> times and memory: python -m experiments.bench --only=TITLE"""

import dataclasses
import functools
import pathlib

from absl import app, flags

from configs import default, quickstart
from kernels.cab import bench, shapes
from scaling import prepare
from scaling.analyse import bench as fitting
from scaling.corpus import alone, bench_report
from scaling.corpus.bench import Cells
from scaling.evaluate import bench as evaluation
from scaling.pretrain import whole_steps
from scaling.pretrain.bench import corpora, memory_alone, programs
from scaling.settings import Settings

OUT = flags.DEFINE_string("out", "runs/bench.json", "file that gets the record")
ROUNDS = flags.DEFINE_integer("rounds", 5, "how often each case is timed")
CELLS = flags.DEFINE_integer("cells", 4, "cells of a batch")
ONLY = flags.DEFINE_string("only", "", "measure what has this in its title")
H5AD = flags.DEFINE_string("h5ad", "", "real cells for the corpora and to embed; '' simulates them")
CORPUS_CELLS = flags.DEFINE_integer("corpus_cells", 20_000, "cells of the corpora")
MEMORY_CELLS = flags.DEFINE_list("memory_cells", ["20000"], "cells of what is watched")


def main(arguments: list[str]) -> None:
    """Measures all groups, or those of --only."""
    if arguments[1:]:
        raise app.UsageError(f"what is {arguments[1:]}? --only names what is to be measured")
    count, rounds = CELLS.value, ROUNDS.value
    configs = {"gf-v1-10m": default, "quickstart": quickstart}
    models = {name: Settings.from_config(of.get_config()) for name, of in configs.items()}
    first, genes = models["gf-v1-10m"], shapes.SHAPES["gf-v1-10m"].V
    groups = programs("gf-v1-10m", first.run, genes, count)
    as_json = dataclasses.asdict(first.run)
    of_case = functools.partial(alone.run, memory_alone, "gf-v1-10m", as_json, genes, count)
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
    some = {title: group for title, group in groups.items() if title in titles}
    record = {**bench.machine(), "groups": bench.measure(some, rounds, of_case)}
    record["rows"] = {title: rows[title]() for title in rows if title in titles}
    cells.clear()
    bench_report.write(record, path)
    print(bench.table(record), bench_report.table(record["rows"]), sep="\n")


if __name__ == "__main__":
    app.run(main)
