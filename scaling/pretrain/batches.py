"""A corpus, a subset of its cells and a plan -> batches, each a pure function of its number."""

import functools
import hashlib
import threading

import grain
import jax
import numpy as np

from scaling.corpus.shards import Corpus, pad
from scaling.pretrain.plan import Plan

READ = 2048  # cells of one read at least: a call costs as much as some 100 cells


class Batches(grain.sources.RandomAccessDataSource):
    """Batch number -> this host's part of it: tokens [B, L], cell [B], epoch [B].

    L is the least of the padded lengths that holds the longest cell of the global batch, so that
    every host has the same. Shards are read many batches at a time.

    Attributes of a batch:
      tokens: int32, rank tokens.
      cell: uint32, hash of the cell's id.
      epoch: int32, pass over the subset.
    """

    def __init__(
        self, corpus: Corpus, rows: np.ndarray, plan: Plan, steps: int, padded: tuple[int, ...]
    ):
        self._corpus, self._rows, self._plan = corpus, np.asarray(rows), plan
        self._steps, self._padded = steps, padded
        self._cells = cell_hashes(corpus.obs["cell_id"].to_numpy()[self._rows])
        self._lengths = corpus.obs["length"].to_numpy()[self._rows].clip(max=padded[-1])
        # Two threads may stand in neighbouring blocks; each block is read by one of them.
        self._lock, self._block = threading.Lock(), functools.lru_cache(maxsize=2)(self._read)

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        hosts = jax.process_count()
        blocks = max(1, READ * hosts // self._plan.batch)
        with self._lock:
            block = self._block(step // blocks * blocks, blocks, jax.process_index(), hosts)
        cells, chosen, epochs, length = block[step % blocks]
        return {
            "tokens": pad(cells, length),
            "cell": self._cells[chosen],
            "epoch": epochs.astype(np.int32),
        }

    def _read(self, first: int, steps: int, host: int, hosts: int) -> list[tuple]:
        """Of each batch of a block: the host's cells, their positions and epochs, and L."""
        part = self._plan.batch // hosts
        mine, batches = slice(host * part, (host + 1) * part), []
        for step in range(first, min(first + steps, self._steps)):
            chosen, epochs = self._plan.at(step)
            batches.append((chosen[mine], epochs[mine], self._length(chosen)))
        cells = self._corpus.cells(self._rows[np.concatenate([b[0] for b in batches])])
        return [(cells[k * part : (k + 1) * part], *b) for k, b in enumerate(batches)]

    def _length(self, chosen: np.ndarray) -> int:
        return self._padded[np.searchsorted(self._padded, self._lengths[chosen].max())]

    def padding(self) -> float:
        """Share of the positions of all batches, on all hosts, that hold no token."""
        tokens = positions = 0
        for step in range(self._steps):
            chosen, _ = self._plan.at(step)
            tokens += int(self._lengths[chosen].sum())
            positions += len(chosen) * self._length(chosen)
        return 1 - tokens / positions

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
