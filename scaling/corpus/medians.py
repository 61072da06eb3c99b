"""Counts of cells, piece by piece -> the median of each gene's non-zero expression."""

import numba
import numpy as np
import scipy.sparse as sp

from scaling.corpus.vocabulary import TARGET_SUM

BITS = 45  # of a float64 that a bucket leaves out: 128 buckets for each power of two
LOWEST, HIGHEST = 2.0**-14, 2.0**14  # what c / n * 10,000 can be, for n up to 10^8
_BASE = int(np.float64(LOWEST).view(np.int64)) >> BITS
BUCKETS = (int(np.float64(HIGHEST).view(np.int64)) >> BITS) - _BASE


class Sketch:
    """Histogram of each gene's non-zero c/n * 10,000 in buckets of equal relative width.

    Histograms of disjoint cells add up to that of all, in any order, to the bit. A median read
    from one is within 1 / 128 of the exact one (buckets as in DDSketch, Masson et al. 2019, their
    edges as a float64's leading bits give them).

    Attributes:
      counts: int32 [genes, BUCKETS], cells in each bucket; uint16 where so many are enough.
    """

    def __init__(self, genes: int, cells: int = 2**31 - 1):
        """A histogram of no cells yet, for `cells` of them at most."""
        self.counts = np.zeros((genes, BUCKETS), np.uint16 if cells < 2**16 else np.int32)

    def add(self, counts_NxG: sp.csr_matrix, totals_N: np.ndarray, sign: int = 1) -> None:
        """Adds cells; with sign -1 takes them out again."""
        _add(
            counts_NxG.indptr, counts_NxG.indices, counts_NxG.data, np.asarray(totals_N), sign,
            self.counts,
        )

    def sparse(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the buckets that hold cells, int64 in the flat histogram, and their cells."""
        places = np.flatnonzero(self.counts)
        return places, self.counts.ravel()[places]

    def add_sparse(self, places: np.ndarray, cells: np.ndarray) -> None:
        """Adds what `sparse` gave of another sketch of the same genes."""
        self.counts.ravel()[places] += cells

    def detected(self) -> np.ndarray:
        """Cells in which each gene was found, int64 [genes]."""
        return self.counts.sum(1, dtype=np.int64)

    def middle(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where the two middle values of genes stand, int64 [2, len(genes)] each.

        Returns:
          their place among the gene's values, by size; their bucket; the values in lower buckets;
          the values in the bucket.
        """
        found = np.empty((4, 2, len(genes)), np.int64)
        for k, gene in enumerate(genes):
            ends = np.cumsum(self.counts[gene], dtype=np.int64)
            place = np.array([(ends[-1] - 1) // 2, ends[-1] // 2])
            bucket = np.searchsorted(ends, place, "right")
            inside = self.counts[gene, bucket]
            found[:, :, k] = place, bucket, ends[bucket] - inside, inside
        return tuple(found)

    def medians(self, genes: np.ndarray) -> np.ndarray:
        """Float64 [len(genes)]; each gene must have been found. Even within a bucket."""
        place, bucket, below, inside = self.middle(genes)
        low, high = edge(bucket), edge(bucket + 1)
        return (low + (high - low) * (place - below + 0.5) / inside).mean(0)


def edge(bucket: np.ndarray) -> np.ndarray:
    """Lower edge of buckets, float64."""
    return ((bucket + _BASE) << BITS).view(np.float64)


def exact(sketch: Sketch, genes: np.ndarray, chunks, limit: int) -> np.ndarray:
    """Exact medians, by reading once more the values that share a bucket with a middle one.

    Args:
      sketch: of the same cells.
      genes: columns of the genes, each found in some cell.
      chunks: function; a call starts over and yields (totals [n], counts [n, genes of sketch]).
      limit: values held at once; beyond it, genes are done in groups, each with its own reading.

    Returns:
      float64 [len(genes)].
    """
    place, bucket, below, inside = sketch.middle(genes)
    # The second middle value stands in the first's bucket, or alone counts from the next one.
    held = inside[0] + np.where(bucket[1] > bucket[0], inside[1], 0)
    medians, groups = np.empty(len(genes)), np.cumsum(held) // limit
    for group in np.unique(groups):
        mine = np.flatnonzero(groups == group)
        order = np.full(len(sketch.counts), -1)
        order[genes[mine]] = np.arange(len(mine))
        low, high = edge(bucket[0, mine]), edge(bucket[1, mine] + 1)
        found = []
        for totals, counts in chunks():
            at = order[counts.indices]
            cell = np.repeat(np.arange(len(totals)), np.diff(counts.indptr))
            value = counts.data / totals[cell] * TARGET_SUM
            wanted = (at >= 0) & (value >= low[at]) & (value < high[at])
            found.append((at[wanted], value[wanted]))
        gene, value = (np.concatenate(v) for v in zip(*found, strict=True))
        value = value[np.lexsort((value, gene))]
        starts = np.cumsum(held[mine]) - held[mine]
        medians[mine] = value[starts + place[:, mine] - below[0, mine]].mean(0)
    return medians


@numba.njit(cache=True, nogil=True)
def _add(indptr, indices, data, totals, sign, histogram):
    value = np.empty(1)
    bits = value.view(np.int64)
    for cell in range(len(totals)):
        for k in range(indptr[cell], indptr[cell + 1]):
            value[0] = data[k] / totals[cell] * TARGET_SUM
            bucket = (bits[0] >> BITS) - _BASE
            histogram[indices[k], min(max(bucket, 0), BUCKETS - 1)] += sign
