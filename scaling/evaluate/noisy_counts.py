"""Test cells -> their counts with Gaussian noise, or as of shallower sequencing.

Every draw depends on (seed, cell id) alone, so that all models and checkpoints see the same cells
changed in the same way.
"""

import dataclasses
import hashlib

import numpy as np
from scipy import sparse

STEP = 2.0**-20  # of noised values, so that their sums are exact in any order


@dataclasses.dataclass(frozen=True)
class Cells:
    """Test cells: CSR raw counts [N, G], totals over all measured genes, and one name each.

    `labels` are "" where unknown: those cells are left out of all scores. `donors` may be None.
    """

    counts: sparse.csr_matrix
    total: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    donors: np.ndarray | None = None

    def __getitem__(self, rows: np.ndarray) -> "Cells":
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Cells(*(None if part is None else part[rows] for part in parts))


def add_noise(cells: Cells, *, sd: float, seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts plus Gaussian noise, a draw for each gene of each cell; negatives become 0.

    Zeros are noised too, so about half of all genes are expressed afterwards: Atti & Subramaniam
    (2025) add noise to the expression matrix. What becomes of negative values they do not say.

    Args:
      cells: their noise depends on (seed, id) and the number of genes.
      sd: of the noise, in counts.

    Returns:
      CSR float64 [N, G] without stored zeros, of multiples of 2^-20 and so no integers; totals,
      float64 [N], those before plus what the noise added.
    """
    rows = []
    for counts_1xG, name in zip(cells.counts, cells.ids, strict=True):
        noise_G = _draws(seed, name).normal(0.0, sd, cells.counts.shape[1])
        values_G = np.round((counts_1xG.toarray()[0] + noise_G) / STEP) * STEP
        rows.append(sparse.csr_matrix(np.maximum(values_G, 0.0)))
    noised_NxG = sparse.vstack(rows, format="csr")
    return noised_NxG, cells.total - _sums(cells.counts) + _sums(noised_NxG)


def thin(cells: Cells, *, kept: float, seed: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Keeps each single molecule with the same chance (binomial thinning), as at lower depth.

    Args:
      cells: their draws depend on (seed, id, kept); counts outside of the genes given, as many as
        the totals exceed the sums by, are thinned too.
      kept: the chance, 0 to 1.

    Returns:
      CSR int64 [N, G] without stored zeros; totals, int64 [N].
    """
    counts_NxG = sparse.csr_matrix(cells.counts, dtype=np.int64, copy=True)
    outside_N = np.asarray(cells.total).astype(np.int64) - _sums(counts_NxG).astype(np.int64)
    for i, name in enumerate(cells.ids):
        rng = _draws(seed, f"{name}\0{kept}")
        at = slice(counts_NxG.indptr[i], counts_NxG.indptr[i + 1])
        counts_NxG.data[at] = rng.binomial(counts_NxG.data[at], kept)
        outside_N[i] = rng.binomial(outside_N[i], kept)
    counts_NxG.eliminate_zeros()
    return counts_NxG, outside_N + _sums(counts_NxG).astype(np.int64)


def _draws(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def _sums(counts_NxG: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts_NxG.sum(axis=1, dtype=np.float64)).ravel()
