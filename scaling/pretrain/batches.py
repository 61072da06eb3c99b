"""A corpus, cells of it, a plan and a seed -> masked batches, each a function of its number."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from scaling.corpus.shards import Corpus
from scaling.pretrain import masking, selection
from scaling.pretrain.plan import Plan
from scaling.pretrain.supervision import Classes

TOGETHER = 3  # batches handed over at once: a small one takes less time than its handing


class Batches(grain.sources.RandomAccessDataSource):
    """Batch number -> this host's part of it, masked: `MaskedCells` of NumPy arrays.

    L is the least of the padded lengths that holds the longest cell of the global batch, so that
    every host has the same.

    Args:
      places: of the global batch, ascending, which this host reads; None reads all.
      encoding: of the model's input.
      classes: of each supervised column.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: np.ndarray,
        plan: Plan,
        steps: int,
        padded: tuple[int, ...],
        masks: masking.MaskingSettings,
        seed: int,
        places: np.ndarray | None = None,
        encoding: str = "ranks",
        classes: Mapping[str, Classes] = {},
    ):
        self._places = np.arange(plan.batch) if places is None else places
        self._masks, self._seed, self.genes = masks, seed, len(corpus.vocabulary)
        self._corpus, self._rows, self._plan = corpus, np.asarray(rows), plan
        self._steps, self._padded, self._encoding = steps, padded, encoding
        whole = masks.strategy == "programs"
        self._programs = (
            selection.read_programs(masks.programs, masks.gene_names, corpus.vocabulary)
            if whole else selection.NONE
        )  # fmt: skip
        self._cells = cell_hashes(corpus.obs["cell_id"].to_numpy()[self._rows])
        self._lengths = corpus.lengths(self._rows).clip(max=padded[-1])
        labels = {column: corpus.obs[column].iloc[self._rows] for column in classes}
        self._classes = {name: (of.numbers(labels[name]), of.fits) for name, of in classes.items()}

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> masking.MaskedCells:
        chosen, epochs = self._plan.at(step)
        mine = self._places
        read = self._rows[chosen[mine]], self._length(chosen), self._encoding
        tokens, values = self._corpus.inputs(*read)
        if tokens.max() >= self.genes:
            raise ValueError(
                f"{self._corpus.folder} has tokens that no gene has: a shard is damaged; "
                "experiments.corpus verify names it"
            )
        draw, genes = (self._seed, epochs[mine], self._cells[chosen[mine]]), self._corpus.vocabulary
        how = len(genes), self._masks, len(genes.special), self._programs
        fits = {name: fits[of[chosen[mine]]] for name, (of, fits) in self._classes.items()}
        masked = masking.mask_cells(tokens, *draw, *how)
        return masked._replace(values_BxL=values, fits=fits or None)

    def cells(self, step: int) -> list[str]:
        """Ids of the cells of a global batch."""
        chosen, _ = self._plan.at(step)
        return self._corpus.obs["cell_id"].to_numpy()[self._rows[chosen]].tolist()

    def _length(self, chosen: np.ndarray) -> int:
        return self._padded[np.searchsorted(self._padded, self._lengths[chosen].max())]

    def count(self, step: int) -> tuple[int, int]:
        """(tokens of a global batch, on all hosts; L, the length that its cells are padded to)."""
        chosen, _ = self._plan.at(step)
        return int(self._lengths[chosen].sum()), self._length(chosen)

    def padding(self, steps: range | None = None) -> float:
        """Share of the positions of some batches, or of all, on all hosts, that hold no token."""
        steps = range(self._steps) if steps is None else steps
        counts = [self.count(step) for step in steps]
        tokens, lengths = (sum(column) for column in zip(*counts, strict=True))
        return 1 - tokens / (lengths * self._plan.batch)

    def __repr__(self) -> str:
        return f"Batches({self._plan}, steps={self._steps}, corpus={self._corpus.folder})"


def cell_hashes(cell_ids: np.ndarray) -> np.ndarray:
    """uint32 hash of each cell's id, from which its masks are drawn."""
    digests = [hashlib.blake2b(i.encode(), digest_size=4).digest() for i in cell_ids]
    return np.frombuffer(b"".join(digests), "<u4").astype(np.uint32)


def iterate(source: Batches, first: int = 0) -> Iterator[masking.MaskedCells]:
    """Batches from the first one wanted; two threads read ahead, some batches at a time."""
    end, reading = len(source), grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
    groups = grain.MapDataset.range(first, end, TOGETHER).map(
        lambda start: [source[step] for step in range(start, min(start + TOGETHER, end))]
    )
    with contextlib.closing(iter(groups.to_iter_dataset(reading))) as iterator:
        for group in iterator:
            yield from group
