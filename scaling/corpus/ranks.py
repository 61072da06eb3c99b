"""Raw counts of cells -> their genes as tokens, by falling expression (rank-value encoding)."""

import numba
import numpy as np
import scipy.sparse as sp

from scaling.corpus.tokens import SPECIAL
from scaling.corpus.vocabulary import TARGET_SUM

BITS = 43  # of a float64 that a bucket leaves out: 512 buckets for each power of two
MOVES = 32  # for each gene, after which a cell is sorted otherwise


def rank_tokens(
    counts_NxG: sp.csr_matrix,
    totals_N: np.ndarray,
    medians_G: np.ndarray,
    special: int = len(SPECIAL),
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes cells by rank (Theodoris et al. 2023).

    score = count / total * 10,000 / median in float64 and in that order of operations (the
    cancelled form rounds differently and swaps genes); genes by falling score. Ties, which the
    original leaves to an unstable sort, go to the lower token first.

    Args:
      counts_NxG: raw counts of the vocabulary's genes, without stored zeros; genes in any order.
      totals_N: counts of each cell over all genes that were measured.
      medians_G: float64 factor of each gene.
      special: tokens that are no genes, which come before the first gene's.

    Returns:
      tokens: uint16, all cells one after another; lengths: int64 [N], tokens of each cell.
    """
    tokens, crowded_N = np.empty(counts_NxG.nnz, np.uint16), np.zeros(len(totals_N), np.bool_)
    data = counts_NxG.data.astype(np.float64, copy=False)
    totals_N = np.asarray(totals_N, np.float64)
    arrays = counts_NxG.indptr, counts_NxG.indices, data, totals_N, medians_G
    _rank(*arrays, special, tokens, crowded_N)
    for cell in np.flatnonzero(crowded_N):
        at = slice(counts_NxG.indptr[cell], counts_NxG.indptr[cell + 1])
        gene = counts_NxG.indices[at]
        score = data[at] / totals_N[cell] * TARGET_SUM / medians_G[gene]
        tokens[at] = gene[np.lexsort((gene, -score))] + special
    return tokens, np.diff(counts_NxG.indptr).astype(np.int64)


def expression(
    counts_NxG: sp.csr_matrix,
    totals_N: np.ndarray,
    tokens: np.ndarray,
    special: int = len(SPECIAL),
) -> np.ndarray:
    """log1p of counts per 10,000 of ranked genes.

    Args:
      counts_NxG, totals_N, special: see `rank_tokens`.
      tokens: what it returned.

    Returns:
      float32, in the order of the tokens.
    """
    counts = np.empty(len(tokens))
    data = counts_NxG.data.astype(np.float64, copy=False)
    _by_token(counts_NxG.indptr, counts_NxG.indices, data, tokens, special, counts)
    shares = counts / np.repeat(np.asarray(totals_N, np.float64), np.diff(counts_NxG.indptr))
    return np.log1p(shares * TARGET_SUM).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _by_token(indptr, indices, data, tokens, first, counts):
    """Counts of each cell, which stand by its columns, in the order of its tokens."""
    of_gene = np.zeros(1 << 16)
    for cell in range(len(indptr) - 1):
        for k in range(indptr[cell], indptr[cell + 1]):
            of_gene[indices[k]] = data[k]
        for k in range(indptr[cell], indptr[cell + 1]):
            counts[k] = of_gene[np.int64(tokens[k]) - first]


@numba.njit(cache=True, nogil=True)
def _rank(indptr, indices, data, totals, medians, first, tokens, crowded):
    """Sorts each cell by the leading bits of its scores, then by insertion, which ends exactly.

    A cell of which so many scores share a bucket that this is slow is given up, and marked.
    """
    longest = 0
    for cell in range(len(totals)):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    unsorted, score = np.empty(longest), np.empty(longest)
    bucket, ends = np.empty(longest, np.int64), np.zeros(1 << 13, np.int64)
    for cell in range(len(totals)):
        start, size = indptr[cell], indptr[cell + 1] - indptr[cell]
        for k in range(size):
            gene = indices[start + k]
            unsorted[k] = data[start + k] / totals[cell] * TARGET_SUM / medians[gene]
        bits = unsorted[:size].view(np.int64)
        lowest, highest = np.int64(0), np.int64(-1)
        for k in range(size):
            bucket[k] = bits[k] >> BITS
            lowest = bucket[k] if k == 0 else min(lowest, bucket[k])
            highest = max(highest, bucket[k])
        buckets = highest - lowest + 1
        if buckets > len(ends):
            ends = np.zeros(buckets, np.int64)
        ends[:buckets] = 0
        for k in range(size):
            bucket[k] = highest - bucket[k]
            ends[bucket[k]] += 1
        for b in range(1, buckets):
            ends[b] += ends[b - 1]
        for k in range(size - 1, -1, -1):
            ends[bucket[k]] -= 1
            place = ends[bucket[k]]
            score[place] = unsorted[k]
            tokens[start + place] = indices[start + k] + first
        moves = 0
        for k in range(1, size):
            if moves > MOVES * size:
                crowded[cell] = True
                break
            s, token = score[k], tokens[start + k]
            place = k
            while place > 0 and (
                score[place - 1] < s
                or (score[place - 1] == s and tokens[start + place - 1] > token)
            ):
                score[place] = score[place - 1]
                tokens[start + place] = tokens[start + place - 1]
                place -= 1
                moves += 1
            score[place], tokens[start + place] = s, token
