"""Lengths of cells, a seed -> which cells stand in which batch, and the lengths to pad to."""

import dataclasses
import functools

import numpy as np

MULTIPLE = 16  # of padded lengths: whole tiles of a TPU's registers, in bfloat16 too


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which cells stand in which global batch.

    Every epoch is its own order of all cells, drawn from (seed, epoch); epochs follow one another
    without a gap, so that no cell is left out or read twice within one. Nothing depends on the
    number of hosts or on what was read before.

    Where cells are of several buckets, an epoch's permutation is sorted by bucket and cut into
    batches, which then take turns at random. A bucket's last cells, too few for a batch, stand in
    one with cells of the next bucket; the batch that two epochs share has cells of the first
    bucket, as far as they go.

    Attributes:
      cells: number of cells.
      batch: cells of a global batch.
      seed: of the orders.
      buckets: int [cells], each cell's bucket, 0 the shortest; None puts all into one.
    """

    cells: int
    batch: int
    seed: int
    buckets: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the batch's cells among the subset and their epoch, int64 [batch] each."""
        stream = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs = stream // self.cells
        chosen = np.empty_like(stream)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = _order(self, int(epoch))[stream[here] % self.cells]
        return chosen, epochs


@functools.lru_cache(maxsize=2)  # a batch spans two epochs at most, unless the subset is tiny
def _order(plan: Plan, epoch: int) -> np.ndarray:
    order = np.random.default_rng((plan.seed, epoch)).permutation(plan.cells)
    if plan.buckets is None:
        return order
    # The cells that end the batch which the epoch before began, and those that begin the last.
    first = min(-epoch * plan.cells % plan.batch, plan.cells)
    last = (plan.cells - first) % plan.batch
    order = order[np.argsort(plan.buckets[order], kind="stable")]
    end = max(np.count_nonzero(plan.buckets == plan.buckets[order[0]]), first + last)
    whole = np.concatenate([order[first : end - last], order[end:]]).reshape(-1, plan.batch)
    buckets = plan.buckets[whole].max(1)
    turns = np.random.default_rng((plan.seed, epoch, 1)).permutation(buckets)
    batches = np.empty_like(whole)
    batches[np.argsort(turns, kind="stable")] = whole
    return np.concatenate([order[:first], batches.ravel(), order[end - last : end]])


def padded_lengths(lengths: np.ndarray, limit: int, count: int) -> tuple[int, ...]:
    """The lengths to pad to that need the fewest positions, each cell at the least that holds it.

    The optimum, by dynamic programming (Fisher 1958, On grouping for maximum homogeneity).

    Args:
      lengths: int [cells], tokens of each cell.
      limit: what cells are cut to.
      count: lengths at most; 1 pads all to the limit, whatever the cells.

    Returns:
      Ascending multiples of `MULTIPLE`, or the limit.
    """
    if count == 1:
        return (limit,)
    cells = np.bincount(np.minimum(lengths, limit), minlength=limit + 1)
    ends = np.unique(np.minimum(-(-np.flatnonzero(cells) // MULTIPLE) * MULTIPLE, limit))
    below = np.concatenate([[0], cells.cumsum()[ends]])
    # positions[i, j]: of the cells above the i shortest ends, padded to end j.
    positions = np.triu(ends * (below[1:] - below[:-1, None])).astype(float)
    positions[np.tril_indices(len(ends), -1)] = np.inf
    best, choices = np.array([0.0] + [np.inf] * len(ends)), []
    for _ in range(min(count, len(ends))):
        total = best[:-1, None] + positions
        choices.append(total.argmin(0))
        best = np.concatenate([[np.inf], total.min(0)])
    chosen, covered = [], len(ends)
    for choice in reversed(choices):
        chosen.append(int(ends[covered - 1]))
        covered = choice[covered - 1]
    return tuple(reversed(chosen))
