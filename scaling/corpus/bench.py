"""Cells -> ranking and building of corpora measured beside plain ways, and memory against size.

What is compared runs in the same minutes, in fresh processes that take turns; only ratios count.
"""

import dataclasses
import functools
import importlib.util
import json
import pathlib
import shutil
import statistics
import time

import numpy as np
from tqdm import tqdm

from scaling.corpus import alone, columns, inspect, pieces, plain, ranks, readers, simulate, tile
from scaling.corpus.build import CorpusSettings, build
from scaling.corpus.vocabulary import Vocabulary

# After thinning about 1,440 genes a cell, as in blood measured with today's droplets.
SIMULATED = {"cells": 2_500, "genes": 20_000, "depth": 4_100.0, "base_sd": 2.2}
GOALS = {"ranking": 3.3, "build": 8.0, "feeding": 12.0, "memory": 1e9}
GOALS |= {"mlm": 2.5, "input": 0.97, "embedding": 1.3}
RANKED_CELLS = 4_096  # whose ranking is timed
LENGTH = 2_048  # tokens that the data set's cells are cut to
PROCESSES = WORKERS = 2  # of the plain ways, and of our builds


@dataclasses.dataclass(frozen=True)
class Cells:
    """Files to measure with, made when they are first asked for.

    Attributes:
      folder: gets them; they stay for a next run until `clear`.
      h5ad: a store of real cells, or "" to simulate.
      count: of cells; where the store has fewer, thinned copies of them (`tile.py`).
      data: settings of the build; its h5ad, labels and vocabulary are replaced.
    """

    folder: pathlib.Path
    h5ad: str
    count: int
    data: CorpusSettings

    @functools.cached_property
    def path(self) -> pathlib.Path:
        """The `.h5ad` of all cells."""
        return self.of_size(self.count)

    @functools.cached_property
    def corpus(self) -> pathlib.Path:
        """A corpus of them, whose vocabulary all others are given."""
        out = self.folder / f"corpus-{self.count}"
        if not out.exists():
            alone.run(built, self.fields(), str(out))
        return out

    @functools.cached_property
    def dataset(self) -> pathlib.Path:
        """A Hugging Face data set of them; needs `datasets`."""
        out = self.folder / f"dataset-{self.count}"
        if not out.exists():
            turn = self.turn()
            alone.run(plain.tokenise, *self.arguments(turn))
            turn.rename(out)
        return out

    def of_size(self, count: int) -> pathlib.Path:
        """The `.h5ad` of so many cells."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.h5ad:
            base = self.folder / "simulated.h5ad"
            if not base.exists():
                simulate.simulate(base, simulate.Simulation(**SIMULATED))
        source = readers.open_source(self.h5ad or base)
        out = self.folder / f"{source.name}-{count}.h5ad"
        if not out.exists():
            tile.tile(source, count, out)
        return out

    def fields(self, path: pathlib.Path | None = None, **changes) -> dict:
        """Settings of a build, for `built`."""
        unlabelled = {"cell_type": "", "score_on": ""}
        changes = {"h5ad": str(path or self.path), **unlabelled, **changes}
        return dataclasses.asdict(dataclasses.replace(self.data, **changes))

    def arguments(self, out: pathlib.Path) -> tuple:
        """Of `plain.tokenise`."""
        vocabulary = self.corpus / "vocabulary.json"
        return str(self.path), str(vocabulary), str(out), LENGTH, PROCESSES

    def turn(self) -> pathlib.Path:
        """Where the next output goes; the last one, and what a killed build left, are removed."""
        out = self.folder / "turn"
        for left in (out, out.with_name("turn.partial")):
            shutil.rmtree(left, ignore_errors=True)
        return out

    def clear(self) -> None:
        """Removes all files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def missing(*libraries: str) -> dict[str, str]:
    """A row that says why nothing is measured, or an empty one where all libraries are there."""
    absent = [name for name in libraries if importlib.util.find_spec(name) is None]
    return {"left_out": f"needs {', '.join(absent)}: pip install '.[bench]'"} if absent else {}


def row(name: str, unit: str, amount: float, seconds: dict[str, list[float]], **more) -> dict:
    """What is measured of each way, by the least of its times, and ours divided by the plain way.

    Args:
      name: of the goal.
      unit: of amount / seconds.
      amount: of work, the same for all ways.
      seconds: of each way; "ours" and "plain" are compared.
    """
    rates = {way: amount / min(times) for way, times in seconds.items()}
    times = {w: {"least": min(t), "median": statistics.median(t)} for w, t in seconds.items()}
    ratio = {"ratio": rates["ours"] / rates["plain"], "goal": GOALS[name]}
    return {"unit": unit, "rates": rates, **ratio, "seconds": times, **more}


def ranking(cells: Cells, rounds: int) -> dict:
    """Our ranking and NumPy's stable sort cell by cell, the tokens being equal."""
    path, vocabulary = str(cells.path), str(cells.corpus / "vocabulary.json")
    found = alone.run(timed_ranking, path, vocabulary, rounds)
    return row("ranking", "cells/s of processor time", found.pop("cells"), **found)


def timed_ranking(path: str, vocabulary: str, rounds: int) -> dict:
    """Processor seconds of both rankings of the same counts in memory, in turns."""
    source, genes = readers.open_source(path), Vocabulary.load(pathlib.Path(vocabulary))
    rows, counts = next(readers.chunks(source, size=RANKED_CELLS))
    totals = np.asarray(counts.sum(1)).ravel()
    ids = columns.gene_ids([source], "", genes)[source.name]
    mapped = pieces.select(counts, pieces.positions(ids, genes.genes), len(genes.genes))
    mapped.sort_indices()
    arguments = mapped, totals, genes.medians, len(genes.special)
    taken = {"ours": [], "plain": []}
    for turn in range(rounds + 1):
        start = time.process_time()
        tokens, lengths = ranks.rank_tokens(*arguments)
        middle = time.process_time()
        wanted = plain.rank_cells(*arguments)
        end = time.process_time()
        if not np.array_equal(tokens, wanted):
            raise RuntimeError(f"{path}: the two rankings differ")
        if turn:
            taken["ours"].append(middle - start)
            taken["plain"].append(end - middle)
    return {"cells": len(rows), "seconds": taken, "genes_per_cell": float(np.median(lengths))}


def building(cells: Cells, rounds: int) -> dict:
    """`.h5ad` to verified corpus and to a plain data set, both by the same given vocabulary.

    "with vocabulary" is a build that makes its vocabulary too, which the plain way cannot.
    """
    if left_out := missing("datasets"):
        return left_out
    given = cells.fields(vocabulary=str(cells.corpus / "vocabulary.json"), workers=WORKERS)
    taken, stages = {"ours": [], "with vocabulary": [], "plain": []}, []
    for _ in tqdm(range(rounds), desc="building", unit="round", leave=False):
        for way, fields in (("ours", given), ("with vocabulary", given | {"vocabulary": ""})):
            taken[way].append(alone.run(built, fields, str(cells.turn())))
        stages.append(alone.run(plain.tokenise, *cells.arguments(cells.turn())))
        taken["plain"].append(sum(stages[-1].values()))
    best = min(stages, key=lambda of: sum(of.values()))
    more = {"stages of plain": best, "file_bytes": cells.path.stat().st_size}
    return row("build", "cells/s", cells.count, taken, workers=given["workers"], **more)


def built(fields: dict, out: str) -> float:
    """Builds and verifies a corpus; returns seconds."""
    start = time.perf_counter()
    build(CorpusSettings(**fields), pathlib.Path(out))
    if faults := inspect.verify(pathlib.Path(out)):
        raise RuntimeError("\n".join(faults))
    return time.perf_counter() - start


def memory(cells: Cells, sizes: list[int]) -> dict:
    """Peak memory of whole builds of rising size, by one process and by two workers.

    What is found is kept in the folder, so that a run that was killed goes on after it.
    """
    found, kept = [], cells.folder / "memory.json"
    if kept.exists():
        found = json.loads(kept.read_text())
    done = {(size["cells"], size["workers"]) for size in found}
    for count in tqdm(sizes, desc="memory", unit="size", leave=False):
        for workers in (1, 2):
            if (count, workers) in done:
                continue
            path = cells.of_size(count)
            fields = cells.fields(path, workers=workers)
            seconds, peak = alone.run_watched(built, fields, str(cells.turn()))
            found.append({"cells": count, "workers": workers, "seconds": seconds, **peak})
            kept.write_text(json.dumps(found))
            if count != cells.count and workers == 2:
                path.unlink()
    return {"unit": "bytes", "goal": GOALS["memory"], "sizes": found}
