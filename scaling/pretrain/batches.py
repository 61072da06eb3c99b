"""A corpus and a subset of its cells -> batches, as a pure function of (seed, step)."""

import dataclasses
import functools
import hashlib

import grain
import jax
import numpy as np

from scaling.corpus.shards import Corpus


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which cells stand in which global batch.

    Every epoch is its own permutation of the cells, drawn from (seed, epoch); epochs follow one
    another without a gap, so that no cell is left out or read twice within one.

    Attributes:
      cells: number of cells.
      batch: cells of a global batch.
      seed: of the permutations.
    """

    cells: int
    batch: int
    seed: int

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the batch's cells among the subset and their epoch, int64 [batch] each."""
        stream = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs = stream // self.cells
        chosen = np.empty_like(stream)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            order = _permutation(self.cells, self.seed, int(epoch))
            chosen[here] = order[stream[here] % self.cells]
        return chosen, epochs


@functools.lru_cache(maxsize=2)  # a batch spans two epochs at most, unless the subset is tiny
def _permutation(cells: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(cells)


class Batches(grain.sources.RandomAccessDataSource):
    """Batch number -> this host's part of it: tokens [B, L], cell [B], epoch [B]."""

    def __init__(self, corpus: Corpus, rows: np.ndarray, plan: Plan, steps: int, length: int):
        self._corpus, self._rows, self._plan = corpus, np.asarray(rows), plan
        self._steps, self._length = steps, length
        self._cells = cell_hashes(corpus.obs["cell_id"].to_numpy()[self._rows])

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        chosen, epochs = self._plan.at(step)
        part = self._plan.batch // jax.process_count()
        mine = slice(jax.process_index() * part, (jax.process_index() + 1) * part)
        chosen, epochs = chosen[mine], epochs[mine]
        return {
            "tokens": self._corpus.tokens(self._rows[chosen], self._length),
            "cell": self._cells[chosen],
            "epoch": epochs.astype(np.int32),
        }

    def __repr__(self) -> str:
        return f"Batches({self._plan}, steps={self._steps}, corpus={self._corpus.folder})"


def cell_hashes(cell_ids: np.ndarray) -> np.ndarray:
    """uint32 hash of each cell's id, from which its masks are drawn."""
    digests = [hashlib.blake2b(i.encode(), digest_size=4).digest() for i in cell_ids]
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32)


def iterate(source: Batches) -> grain.DatasetIterator:
    """An iterator whose position is one global batch number; reads ahead in two threads."""
    reading = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    return iter(grain.MapDataset.source(source).to_iter_dataset(reading))
