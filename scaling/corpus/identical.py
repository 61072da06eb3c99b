"""Counts of cells -> fingerprints, by which identical cells are found in and across files."""

import hashlib

import numba
import numpy as np
import scipy.sparse as sp


def gene_hashes(ids: np.ndarray) -> np.ndarray:
    """uint64 [len(ids)] of gene ids, the same in every corpus; 0 where a column has none."""
    return np.array([
        0 if i is None else int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest())
        for i in ids
    ], np.uint64)


def fingerprints(counts_NxG: sp.csr_matrix, hashes_G: np.ndarray) -> np.ndarray:
    """uint64 [N] of each cell's (gene, count) pairs, whatever their order in the file.

    Equal counts of the same genes give equal fingerprints; two different cells of 100M share one
    with a probability below 1e-3 in all. Columns of hash 0 do not count.

    Args:
      counts_NxG: raw counts without stored zeros; columns with the same hash already summed.
      hashes_G: see `gene_hashes`.
    """
    prints = np.zeros(counts_NxG.shape[0], np.uint64)
    _sum_of_hashes(counts_NxG.indptr, counts_NxG.indices, counts_NxG.data, hashes_G, prints)
    return prints


@numba.njit(cache=True, nogil=True)
def _sum_of_hashes(indptr, indices, data, hashes, prints):
    """Sums the finaliser of SplitMix64 (Steele et al. 2014) over the pairs, modulo 2^64."""
    for cell in range(len(prints)):
        total = np.uint64(0)
        for k in range(indptr[cell], indptr[cell + 1]):
            gene = hashes[indices[k]]
            if gene == 0:
                continue
            h = gene + np.uint64(data[k]) * np.uint64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total += h ^ (h >> np.uint64(31))
        prints[cell] = total
