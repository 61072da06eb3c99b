"""Raw counts in; the plain representations that a pretrained model must beat out."""

import dataclasses

import anndata
import harmonypy
import numpy as np
import pandas as pd
import scanpy
from scipy import sparse
from sklearn.decomposition import PCA

TARGET_TOTAL = 1e4
HARMONY_PENALTY = 1.0
SCVI_LAYERS, SCVI_LATENT = 2, 30  # Kedzierska et al. (Genome Biology 2025)


def log_normalise(
    counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None
) -> sparse.csr_matrix:
    """log(1 + 10,000 c / n): counts per ten thousand of the cell, on a log scale.

    Args:
      counts_NxG: CSR, raw counts, not negative.
      total_N: counts of each cell over all measured genes, where counts_NxG holds only some of
        them; None takes the row sums. A cell without counts stays all zero.

    Returns:
      CSR float32 [N, G], a new matrix.

    Raises:
      ValueError: not CSR, negative or not finite counts, or totals below the row sums.
    """
    if not sparse.issparse(counts_NxG) or counts_NxG.format != "csr":
        raise ValueError(
            f"counts are {type(counts_NxG).__name__}: pass a scipy CSR matrix of cells x genes"
        )
    if counts_NxG.nnz and not (np.isfinite(counts_NxG.data).all() and counts_NxG.data.min() >= 0):
        raise ValueError("counts hold negative, NaN or infinite values: pass raw counts")
    row_sum_N = np.asarray(counts_NxG.sum(axis=1, dtype=np.float64)).ravel()
    total_N = row_sum_N if total_N is None else np.asarray(total_N, np.float64)
    if total_N.shape != row_sum_N.shape or (total_N < row_sum_N).any():
        raise ValueError(
            f"totals of shape {total_N.shape} for {row_sum_N.size} cells must be one per cell and "
            "no smaller than the cell's own counts: pass the totals over all measured genes"
        )
    per_cell_N = np.divide(
        TARGET_TOTAL, total_N, out=np.zeros_like(total_N), where=total_N > 0
    )
    data = counts_NxG.data * np.repeat(per_cell_N, np.diff(counts_NxG.indptr))
    structure = (counts_NxG.indices.copy(), counts_NxG.indptr.copy())
    return sparse.csr_matrix(
        (np.log1p(data).astype(np.float32), *structure), shape=counts_NxG.shape
    )


@dataclasses.dataclass(frozen=True)
class Hvg:
    """Highly variable genes: their columns (int64, rising) among the genes measured."""

    genes: np.ndarray
    genes_measured: int


def fit_hvg(
    counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None, *, n_genes: int = 2_000
) -> Hvg:
    """Choose the genes whose dispersion is highest among genes of similar mean.

    Scanpy's 'seurat' flavour (Satija et al., Nature Biotechnology 2015): variance / mean of the
    counts per ten thousand, logged, standardised within 20 bins of the mean. Genes that do not
    vary over the fitting cells (silent ones among them) are set aside first and never chosen, so
    there may be fewer than n_genes. Ties go to the earlier column.

    Args:
      counts_NxG, total_N: as for log_normalise.
      n_genes: how many to choose.

    Raises:
      ValueError: fewer than two cells, or no gene that varies.
    """
    if counts_NxG.shape[0] < 2:
        raise ValueError(f"{counts_NxG.shape[0]} cell(s) to fit on: variance needs at least two")
    x_NxG = log_normalise(counts_NxG, total_N)
    low_G, high_G = x_NxG.min(axis=0).toarray()[0], x_NxG.max(axis=0).toarray()[0]
    # Set aside before scanpy takes the log of a variance that is zero but for rounding.
    varying = np.flatnonzero(high_G - low_G > 1e-5 * high_G)
    if varying.size == 0:
        raise ValueError(
            f"none of {x_NxG.shape[1]} genes varies over the {x_NxG.shape[0]} fitting cells: "
            "check that the genes are the data set's own, or fit on more cells"
        )
    cells = anndata.AnnData(x_NxG[:, varying])
    # The score only: scanpy's own cut-off warns when few genes have one, and can exceed n_genes.
    table = scanpy.pp.highly_variable_genes(cells, flavor="seurat", inplace=False)
    score = table["dispersions_norm"].to_numpy()
    chosen = np.argsort(-score, kind="stable")[:n_genes]  # an undefined score sorts last
    return Hvg(np.sort(varying[chosen]).astype(np.int64), counts_NxG.shape[1])


def apply_hvg(
    hvg: Hvg, counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None
) -> np.ndarray:
    """Log-normalised expression of the chosen genes: dense float32 [N, len(hvg.genes)].

    The cell's total is over all genes given, not only the chosen ones. N x 2,000 x 4 bytes.

    Raises:
      ValueError: another number of genes than at fitting.
    """
    if counts_NxG.shape[1] != hvg.genes_measured:
        raise ValueError(
            f"{counts_NxG.shape[1]} genes given, {hvg.genes_measured} at fitting: bring the cells "
            "to the same genes in the same order"
        )
    return log_normalise(counts_NxG, total_N)[:, hvg.genes].toarray()


@dataclasses.dataclass(frozen=True)
class Pca:
    """Principal components of the highly variable genes: mean_G and components_DxG, float64."""

    hvg: Hvg
    mean_G: np.ndarray
    components_DxG: np.ndarray


def fit_pca(
    counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None, *, n_components: int = 50
) -> Pca:
    """Highly variable genes, centred, and their leading principal components.

    Exact, with fixed signs: nothing is drawn at random. There are at most cells - 1 components.
    Genes keep their own variance (they are not scaled to unit variance).

    Args:
      counts_NxG, total_N: as for log_normalise.
      n_components: how many to keep.
    """
    hvg = fit_hvg(counts_NxG, total_N)
    x_NxG = apply_hvg(hvg, counts_NxG, total_N).astype(np.float64)
    kept = min(n_components, x_NxG.shape[0] - 1, x_NxG.shape[1])
    # Both are exact; each is quick where the other is slow.
    solver = "full" if x_NxG.shape[0] < x_NxG.shape[1] else "covariance_eigh"
    fitted = PCA(kept, svd_solver=solver).fit(x_NxG)
    return Pca(hvg, fitted.mean_, fitted.components_)


def apply_pca(
    pca: Pca, counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None
) -> np.ndarray:
    """Coordinates of cells, fitted on or not, on the components: float32 [N, D]."""
    x_NxG = apply_hvg(pca.hvg, counts_NxG, total_N) - pca.mean_G
    return (x_NxG @ pca.components_DxG.T).astype(np.float32)


def fit_harmony(
    counts_NxG: sparse.csr_matrix,
    total_N: np.ndarray | None,
    batch: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """Principal components of the cells to be scored, corrected for their batches by Harmony.

    Korsunsky et al., Nature Methods 2019, with its ridge penalty of 1, which published benchmarks
    used; harmonypy 2 would estimate one per cluster and correct less. Transductive, unlike a
    pretrained model: the components and the correction are fitted on the scored cells and told
    their batches (no labels), so that there is nothing to apply to other cells.

    Args:
      counts_NxG, total_N: of the cells to be integrated; as for log_normalise.
      batch: a name per cell.
      seed: of the clusters' start.

    Returns:
      float32 [N, 50], or fewer columns for fewer cells.

    Raises:
      ValueError: fewer than two batches, or a cell without one.
    """
    batch = _batches(batch, counts_NxG.shape[0])
    pca = fit_pca(counts_NxG, total_N)
    before_NxD = apply_pca(pca, counts_NxG, total_N).astype(np.float64)
    corrected = harmonypy.run_harmony(
        before_NxD, pd.DataFrame({"batch": batch}), "batch", lamb=HARMONY_PENALTY, verbose=False,
        random_state=seed,
    )  # fmt: skip
    return np.asarray(corrected.Z_corr, np.float32)


def fit_scvi(
    counts_NxG: sparse.csr_matrix, batch: np.ndarray, *, seed: int, epochs: int | None = None
) -> np.ndarray:
    """Latent means of scVI, fitted on the cells to be scored and told their batches.

    Lopez et al., Nature Methods 2018: 2 layers, 30 latent dimensions, negative binomial, on the
    2,000 genes of `fit_hvg`. Transductive, as `fit_harmony`.

    Args:
      counts_NxG: CSR, raw counts of the cells to be integrated.
      batch: a name per cell.
      seed: of weights and batches of the training.
      epochs: None leaves scvi-tools its own number: 400, fewer beyond 20,000 cells.

    Returns:
      float32 [N, 30].

    Raises:
      ValueError: scvi-tools is not installed, fewer than two batches, or a cell without one.
    """
    batch = _batches(batch, counts_NxG.shape[0])
    try:
        import scvi
    except ImportError as missing:
        raise ValueError(
            "scVI needs scvi-tools, which is not installed: install the extra, scaling[scvi]"
        ) from missing
    genes = fit_hvg(counts_NxG).genes
    cells = anndata.AnnData(
        counts_NxG[:, genes].astype(np.float32),
        obs=pd.DataFrame({"batch": batch}, index=np.arange(len(batch)).astype(str)),
    )
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells, n_layers=SCVI_LAYERS, n_latent=SCVI_LATENT, gene_likelihood="nb"
    )
    model.train(max_epochs=epochs, accelerator="auto", enable_progress_bar=True)
    return np.asarray(model.get_latent_representation(), np.float32)


def _batches(batch: np.ndarray, cells: int) -> np.ndarray:
    batch = np.asarray(batch, str)
    if batch.shape != (cells,) or (batch == "").any() or len(set(batch)) < 2:
        raise ValueError(
            f"{len(set(batch) - {''})} batches named for {(batch != '').sum()} of {cells} cells: "
            "a correction needs two or more, and one for every cell; leave the others out"
        )
    return batch
