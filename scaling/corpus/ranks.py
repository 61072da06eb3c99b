"""Raw counts of cells -> their genes as tokens, by falling expression (rank-value encoding)."""

import numpy as np
import scipy.sparse as sp

from scaling.corpus.tokens import SPECIAL
from scaling.corpus.vocabulary import TARGET_SUM


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
      counts_NxG: raw counts of the vocabulary's genes, without stored zeros.
      totals_N: counts of each cell over all genes that were measured.
      medians_G: float64 factor of each gene.
      special: tokens that are no genes, which come before the first gene's.

    Returns:
      tokens: uint16, all cells one after another; lengths: int64 [N], tokens of each cell.
    """
    lengths_N = np.diff(counts_NxG.indptr)
    cell = np.repeat(np.arange(len(totals_N)), lengths_N)
    gene = counts_NxG.indices
    score = counts_NxG.data / totals_N[cell] * TARGET_SUM / medians_G[gene]
    order = np.lexsort((gene, -score, cell))
    return (gene[order] + special).astype(np.uint16), lengths_N.astype(np.int64)
