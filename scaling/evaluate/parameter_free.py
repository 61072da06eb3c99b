"""Raw counts in; normal scores of ranks, whitened components and balanced regression out.

The representation without trained parameters of Souza & Mehta (arXiv 2602.16696).
"""

import dataclasses
import warnings
from collections.abc import Iterator

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, svds
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import svd_flip
from tqdm import tqdm

from scaling.evaluate.intervals import NotScoredError
from scaling.evaluate.label_scores import Predictions

GENES = 20_000
COMPONENTS = 220
CHUNK_CELLS = 2_048
GRAM = 6_000  # cells or genes, up to which their products are held: 8 x 6,000^2 bytes
NO_VARIANCE = 1e-6  # of the largest singular value
ITERATIONS = 5_000


def normal_scores(counts_NxG: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Ranks within the cell, as quantiles of a normal distribution, at unit length.

    p = average rank / (G + 1), the inverse normal of p, then each cell divided by its L2 norm.
    The cell's total, by which the source divides first, changes no rank. All zeros of a cell
    share one rank and so one value, which is kept once: a cell costs O(n log n) of its n counts.

    Args:
      counts_NxG: CSR, counts or other values that are finite and not negative.

    Returns:
      CSR float64 [N, G], by how much each positive count's score exceeds that of a zero, and
      float64 [N], the score of a zero. A cell without differences between genes is all 0.

    Raises:
      ValueError: not CSR, or values that are negative or not finite.
    """
    counts_NxG = _positive(counts_NxG)
    cells, genes = counts_NxG.shape
    expressed_N = np.diff(counts_NxG.indptr).astype(np.int64)
    cell = np.repeat(np.arange(cells), expressed_N)
    order = np.lexsort((counts_NxG.data, cell))  # cells stay together, values rise
    value = counts_NxG.data[order]
    first = np.ones(value.size, bool)  # of equal values of a cell; order leaves `cell` as it is
    first[1:] = (value[1:] != value[:-1]) | (cell[1:] != cell[:-1])
    start = np.flatnonzero(first)
    size = np.diff(np.append(start, value.size))
    zeros_N = genes - expressed_N
    before = start - counts_NxG.indptr[cell[start]] + zeros_N[cell[start]]
    score = np.empty(value.size)
    score[order] = np.repeat(ndtri((before + (size + 1) / 2) / (genes + 1)), size)
    zero_N = np.where(zeros_N > 0, ndtri((zeros_N + 1) / 2 / (genes + 1)), 0.0)

    norm_N = np.sqrt(np.bincount(cell, score**2, minlength=cells) + zeros_N * zero_N**2)
    differs_N = norm_N > 1e-9  # all genes tied: every score is 0 but for rounding
    per_norm_N = np.divide(1.0, norm_N, out=np.zeros(cells), where=differs_N)
    above = (score - zero_N[cell]) * per_norm_N[cell]
    structure = (counts_NxG.indices.copy(), counts_NxG.indptr.copy())
    return sparse.csr_matrix((above, *structure), shape=(cells, genes)), zero_N * per_norm_N


def _positive(counts_NxG: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same counts without stored zeros and with each gene stored once, checked."""
    if not sparse.issparse(counts_NxG) or counts_NxG.format != "csr":
        raise ValueError(
            f"counts are {type(counts_NxG).__name__}: pass a scipy CSR matrix of cells x genes"
        )
    if not counts_NxG.has_canonical_format:
        counts_NxG = counts_NxG.copy()
        counts_NxG.sum_duplicates()
    if counts_NxG.nnz and not (np.isfinite(counts_NxG.data).all() and counts_NxG.data.min() >= 0):
        raise ValueError("counts hold negative, NaN or infinite values: pass raw counts")
    if counts_NxG.nnz and counts_NxG.data.min() == 0:
        counts_NxG = counts_NxG.copy()
        counts_NxG.eliminate_zeros()
    return counts_NxG


def _chunks(counts_NxG: sparse.csr_matrix, desc: str) -> Iterator[tuple]:
    """(rows, scores above a zero's, scores of a zero), some cells at a time."""
    starts = range(0, counts_NxG.shape[0], CHUNK_CELLS)
    for start in tqdm(starts, desc=desc, leave=False, disable=len(starts) < 2):
        rows = slice(start, min(start + CHUNK_CELLS, counts_NxG.shape[0]))
        yield rows, *normal_scores(counts_NxG[rows])


@dataclasses.dataclass(frozen=True)
class ParameterFree:
    """A fitted representation: a cell's scores of the chosen genes @ weights + offset.

    Attributes:
      genes: int64, columns chosen, rising.
      genes_measured: columns at fitting.
      mean_G, scale_G: float64, of the chosen genes' scores over the training cells.
      components_DxG: float64, principal axes of the standardised scores, rows of unit length.
      deviation_D: float64, SD of the training cells along each axis, by which it is divided.
    """

    genes: np.ndarray
    genes_measured: int
    mean_G: np.ndarray
    scale_G: np.ndarray
    components_DxG: np.ndarray
    deviation_D: np.ndarray


def fit(
    counts_NxG: sparse.csr_matrix,
    labels: np.ndarray | None = None,
    *,
    n_genes: int = GENES,
    n_components: int = COMPONENTS,
) -> ParameterFree:
    """Genes by ANOVA, standardised, and their whitened principal components.

    Genes are those of the highest F over the labels of the training cells that have one; a tie
    goes to the earlier column. All are kept where there are no labels, or n_genes or fewer. Genes
    that no training cell expresses are left out first: they say how deep a cell was sequenced,
    and the first cell to express one would lie hundreds of SDs away. (The source is silent here.)

    Nothing is drawn at random. Components of no variance are dropped: there are at most cells - 1.
    Memory: 12 to 16 bytes for each positive count, and nothing of cells x genes.

    Args:
      counts_NxG: CSR, raw counts of the training cells.
      labels: a name per cell, "" where unknown; None: no labels.
      n_genes, n_components: how many to keep.

    Raises:
      ValueError: fewer than two cells, labels of another length, no gene that varies, or as for
        `normal_scores`.
    """
    counts_NxG = _positive(counts_NxG)
    cells = counts_NxG.shape[0]
    if cells < 2:
        raise ValueError(f"{cells} cell(s) to fit on: variance needs at least two")
    labels = np.full(cells, "") if labels is None else np.asarray(labels, str)
    if labels.shape != (cells,):
        raise ValueError(f"labels of shape {labels.shape} for {cells} cells: give one per cell")

    moments = _moments(counts_NxG, labels)
    genes = np.flatnonzero(np.bincount(counts_NxG.indices, minlength=counts_NxG.shape[1]))
    if genes.size > n_genes and len(moments.cells_C) > 1:
        best = np.argsort(-moments.f_statistic()[genes], kind="stable")[:n_genes]  # NaN is last
        genes = np.sort(genes[best])
    mean_G = moments.sum_G[genes] / cells
    variance_G = np.maximum(moments.squares_G[genes] / cells - mean_G**2, 0.0)
    varies_G = variance_G > 1e-12 * (variance_G + mean_G**2)  # rounding of a difference of sums
    if not varies_G.any():
        raise ValueError(
            f"none of {counts_NxG.shape[1]} genes varies over the {cells} training cells: check "
            "that the genes are the data set's own, or fit on more cells"
        )
    scale_G = np.sqrt(np.where(varies_G, variance_G, 1.0))
    parts = [(x[:, genes], zero) for _, x, zero in _chunks(counts_NxG, "standardising")]
    x_NxG = sparse.vstack([x for x, _ in parts], format="csr")
    zero_N = np.concatenate([zero for _, zero in parts])
    del parts
    x_NxG.data *= np.where(varies_G, 1 / scale_G, 0.0)[x_NxG.indices]
    standard = _standardised(x_NxG, zero_N, np.where(varies_G, 1 / scale_G, 0.0), mean_G)
    components_DxG, singular_D = _components(standard, min(n_components, cells - 1, genes.size))
    deviation_D = singular_D / np.sqrt(cells - 1)
    return ParameterFree(
        genes, counts_NxG.shape[1], mean_G, scale_G, components_DxG, deviation_D
    )


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Sums of scores: of all cells, and of the labelled ones by class."""

    sum_G: np.ndarray
    squares_G: np.ndarray
    cells_C: np.ndarray
    sum_CxG: np.ndarray
    labelled_squares_G: np.ndarray

    def f_statistic(self) -> np.ndarray:
        """One-way ANOVA: variance between classes over that within; float64 [G], NaN if 0 / 0."""
        classes, n = len(self.cells_C), self.cells_C.sum()
        common_G = self.sum_CxG.sum(0) ** 2 / n
        between_G = (self.sum_CxG**2 / self.cells_C[:, None]).sum(0) - common_G
        total_G = self.labelled_squares_G - common_G
        rounding_G = 1e-12 * self.labelled_squares_G
        between_G = np.where(between_G > rounding_G, between_G, 0.0)
        within_G = np.where(total_G - between_G > rounding_G, total_G - between_G, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (between_G / (classes - 1)) / (within_G / (n - classes))


def _moments(counts_NxG: sparse.csr_matrix, labels: np.ndarray) -> _Moments:
    names, class_N = np.unique(labels, return_inverse=True)
    genes = counts_NxG.shape[1]
    squares_CxG, sum_CxG = np.zeros((2, len(names), genes))
    for rows, x_NxG, zero_N in _chunks(counts_NxG, "ranking genes"):
        here = class_N[rows]
        member_CxN = sparse.csr_matrix(
            (np.ones(here.size), (here, np.arange(here.size))), shape=(len(names), here.size)
        )
        sum_CxG += (member_CxN @ x_NxG).toarray() + (member_CxN @ zero_N)[:, None]
        x_NxG.data = x_NxG.data**2 + 2 * x_NxG.data * np.repeat(zero_N, np.diff(x_NxG.indptr))
        squares_CxG += (member_CxN @ x_NxG).toarray() + (member_CxN @ zero_N**2)[:, None]
    known_C = names != ""
    return _Moments(
        sum_CxG.sum(0), squares_CxG.sum(0), np.bincount(class_N)[known_C], sum_CxG[known_C],
        squares_CxG[known_C].sum(0),
    )  # fmt: skip


def _standardised(x_NxG, zero_N, per_scale_G, mean_G) -> LinearOperator:
    """(scores - mean) / scale, as a sparse matrix and two of rank one; nothing dense."""
    shift_G = mean_G * per_scale_G

    def times(v_GxK):
        return x_NxG @ v_GxK + np.multiply.outer(zero_N, per_scale_G @ v_GxK) - shift_G @ v_GxK

    def transposed_times(u_NxK):
        return (
            x_NxG.T @ u_NxK
            + np.multiply.outer(per_scale_G, zero_N @ u_NxK)
            - np.multiply.outer(shift_G, u_NxK.sum(0))
        )

    return LinearOperator(
        x_NxG.shape, dtype=np.float64, matvec=times, rmatvec=transposed_times, matmat=times,
        rmatmat=transposed_times,
    )  # fmt: skip


def _components(standard: LinearOperator, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors [D, G] and values [D]; signs as scikit-learn's PCA."""
    cells, genes = standard.shape
    if min(cells, genes) <= GRAM:  # exact and tenfold quicker, but quadratic in memory
        side = standard if cells <= genes else standard.H
        size = side.shape[0]
        gram = np.empty((size, size))
        for start in range(0, size, CHUNK_CELLS):
            columns = slice(start, start + CHUNK_CELLS)
            gram[:, columns] = side @ side.rmatmat(np.eye(size)[:, columns])
        squares, axes = linalg.eigh(gram, subset_by_index=(size - kept, size - 1))
        singular, axes = np.sqrt(np.maximum(squares[::-1], 0.0)), axes[:, ::-1]
        real = singular > NO_VARIANCE * singular[0]
        singular, axes = singular[real], axes[:, real]
        axes = (side.rmatmat(axes) / singular if cells <= genes else axes).T
    else:
        start = np.random.default_rng(0).standard_normal(min(cells, genes))
        _, singular, axes = svds(standard, kept, v0=start, return_singular_vectors="vh")
        real = singular[::-1] > NO_VARIANCE * singular[-1]
        singular, axes = singular[::-1][real], axes[::-1][real]
    return svd_flip(None, axes, u_based_decision=False)[1], singular


def apply(fitted: ParameterFree, counts_NxG: sparse.csr_matrix) -> np.ndarray:
    """Coordinates of cells, fitted on or not, whitened: float32 [N, D].

    Raises:
      ValueError: another number of genes than at fitting, or as for `normal_scores`.
    """
    if counts_NxG.shape[1] != fitted.genes_measured:
        raise ValueError(
            f"{counts_NxG.shape[1]} genes given, {fitted.genes_measured} at fitting: bring the "
            "cells to the same genes in the same order"
        )
    weights_GxD = fitted.components_DxG.T / fitted.scale_G[:, None] / fitted.deviation_D
    out = np.empty((counts_NxG.shape[0], len(fitted.deviation_D)), np.float32)
    for rows, x_NxG, zero_N in _chunks(counts_NxG, "representing"):
        at_zero_NxD = np.multiply.outer(zero_N, weights_GxD.sum(0))
        out[rows] = x_NxG[:, fitted.genes] @ weights_GxD + at_zero_NxD - fitted.mean_G @ weights_GxD
    return out


def classify(train_NxD: np.ndarray, labels: np.ndarray, test_NxD: np.ndarray) -> Predictions:
    """What the published classifier says of cells.

    Multinomial logistic regression, L2 (C = 1), every class of the same weight in all.

    Args:
      train_NxD, test_NxD: representations of the cells to fit on and of those to classify.
      labels: a name per training cell; cells of "" are left out.

    Raises:
      ValueError: fewer than two classes.
      NotScoredError: it did not converge.
    """
    labels = np.asarray(labels, str)
    known = labels != ""
    if len(set(labels[known])) < 2:
        raise ValueError(
            f"{len(set(labels[known]))} class(es) in {known.sum()} labelled training cells; a "
            "classifier needs two: choose other cells"
        )
    model = LogisticRegression(class_weight="balanced", max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            model.fit(np.asarray(train_NxD, np.float64)[known], labels[known])
        except ConvergenceWarning as unfinished:
            raise NotScoredError(
                f"the balanced regression did not converge in {ITERATIONS} iterations on "
                f"{known.sum()} cells x {train_NxD.shape[1]} components; look for extreme cells"
            ) from unfinished
    note = "balanced logistic regression, the classifier published with the representation"
    if not len(test_NxD):
        return Predictions(np.empty(0, str), note=note)
    p_NxC = model.predict_proba(np.asarray(test_NxD, np.float64))
    return Predictions(model.classes_[p_NxC.argmax(1)], model.classes_, p_NxC, note)
