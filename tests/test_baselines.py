"""Plain representations: formulas by hand, scanpy's own selection, few and empty cells."""

import sys

import anndata
import numpy as np
import pytest
import scanpy
from scipy import sparse
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from scaling.evaluate import baselines


def counts(n_cells: int, n_genes: int, seed: int = 0, mean: float = 0.5) -> sparse.csr_matrix:
    """Over-dispersed counts with means over two orders of magnitude, and some silent genes."""
    rng = np.random.default_rng(seed)
    mean_G = mean * np.exp(rng.normal(0, 1.2, n_genes))
    mean_G[:: max(2, n_genes // 7)] = 0.0
    rate_NxG = rng.gamma(0.7, mean_G / 0.7, (n_cells, n_genes))
    return sparse.csr_matrix(rng.poisson(rate_NxG).astype(np.int32))


def test_log_normalise_by_hand():
    x_NxG = sparse.csr_matrix(np.array([[1, 3, 0], [0, 0, 0], [0, 0, 5]], np.int32))
    out = baselines.log_normalise(x_NxG)
    expected = np.log1p([[2500, 7500, 0], [0, 0, 0], [0, 0, 10_000]])
    np.testing.assert_allclose(out.toarray(), expected, rtol=1e-6)
    assert out.format == "csr" and out.dtype == np.float32
    assert x_NxG.toarray().max() == 5  # the input is left as it was
    part = baselines.log_normalise(x_NxG, np.array([40, 0, 10]))
    np.testing.assert_allclose(
        part.toarray(), np.log1p([[250, 750, 0], [0, 0, 0], [0, 0, 5000]]), rtol=1e-6
    )


def test_log_normalise_agrees_with_scanpy():
    cells = anndata.AnnData(counts(50, 300).astype(np.float32))
    expected = cells.copy()
    scanpy.pp.normalize_total(expected, target_sum=1e4)
    scanpy.pp.log1p(expected)
    out = baselines.log_normalise(cells.X)
    np.testing.assert_allclose(out.toarray(), expected.X.toarray(), rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "total", "message"),
    [
        (np.ones((2, 3)), None, "ndarray: pass a scipy CSR"),
        (sparse.csc_matrix(np.ones((2, 3))), None, "csc_matrix: pass a scipy CSR"),
        (sparse.csr_matrix(np.array([[1.0, -1.0]])), None, "negative"),
        (sparse.csr_matrix(np.array([[1.0, np.nan]])), None, "NaN"),
        (sparse.csr_matrix(np.ones((2, 3))), np.array([3, 2]), "no smaller than"),
        (sparse.csr_matrix(np.ones((2, 3))), np.array([3, 3, 3]), "one per cell"),
    ],
)
def test_log_normalise_refuses(given, total, message):
    with pytest.raises(ValueError, match=message):
        baselines.log_normalise(given, total)


def dispersion_scores(x_NxG: np.ndarray, n_bins: int = 20) -> np.ndarray:
    """The 'seurat' score written out: log(variance / mean), standardised in bins of log mean."""
    mean_G, variance_G = x_NxG.mean(0), x_NxG.var(0, ddof=1)
    with np.errstate(divide="ignore"):
        raw_G = np.log(variance_G / mean_G)
    raw_G[variance_G == 0] = np.nan
    log_mean_G = np.log1p(mean_G)
    edges = np.linspace(log_mean_G.min(), log_mean_G.max(), n_bins + 1)
    bin_G = np.clip(np.searchsorted(edges, log_mean_G, side="left") - 1, 0, n_bins - 1)
    score_G = np.full(mean_G.size, np.nan)
    for b in np.unique(bin_G):
        members = bin_G == b
        raw = raw_G[members]
        if np.isfinite(raw).sum() == 1:
            score_G[members] = np.where(np.isfinite(raw), 1.0, np.nan)
        else:
            score_G[members] = (raw - np.nanmean(raw)) / np.nanstd(raw, ddof=1)
    return score_G


def test_genes_chosen_are_those_of_the_formula():
    x_NxG = counts(400, 600)
    hvg = baselines.fit_hvg(x_NxG, n_genes=100)
    expressed = np.flatnonzero(np.asarray(x_NxG.sum(0)).ravel() > 0)
    assert expressed.size < 600  # some genes are silent
    per_ten_thousand = x_NxG.toarray() / x_NxG.sum(1).A1[:, None] * 1e4
    score = dispersion_scores(per_ten_thousand[:, expressed])
    expected = np.sort(expressed[np.argsort(-score, kind="stable")[:100]])
    assert np.isin(hvg.genes, expected).mean() >= 0.98  # float32 may swap genes at the cut
    assert hvg.genes.size == 100 and (np.diff(hvg.genes) > 0).all()


def test_genes_chosen_are_scanpys_on_real_cells(real_data):
    cells = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    reference = anndata.AnnData(cells.X.astype(np.float32))
    scanpy.pp.filter_genes(reference, min_cells=1)
    scanpy.pp.normalize_total(reference, target_sum=1e4)
    scanpy.pp.log1p(reference)
    scanpy.pp.highly_variable_genes(reference, n_top_genes=2_000, flavor="seurat")
    kept = np.flatnonzero(np.asarray(cells.X.sum(0)).ravel() > 0)
    expected = kept[reference.var["highly_variable"].to_numpy()]
    assert np.isin(expected, baselines.fit_hvg(cells.X).genes).mean() > 0.99


@pytest.mark.parametrize("n_cells", [2, 50, 100])
def test_few_cells_and_few_genes_are_enough(n_cells):
    x_NxG = counts(n_cells, 3_000, mean=0.05)
    hvg, pca = baselines.fit_hvg(x_NxG), baselines.fit_pca(x_NxG)
    assert 0 < hvg.genes.size <= 2_000
    assert pca.components_DxG.shape == (min(50, n_cells - 1), hvg.genes.size)
    few = counts(n_cells, 5, mean=3.0)
    assert baselines.fit_hvg(few).genes.size <= 5


def test_genes_without_variance_are_never_chosen():
    x_NxG = counts(60, 40, mean=3.0).toarray()
    x_NxG[:, 10] = 0
    x_NxG[:, 20] = 0
    total_N = np.full(60, x_NxG.sum(1).max() + 4)  # equal totals keep a constant gene constant
    x_NxG[:, 20] = 4
    hvg = baselines.fit_hvg(sparse.csr_matrix(x_NxG), total_N, n_genes=40)
    assert not {10, 20} & set(hvg.genes)
    varying = x_NxG.std(0) > 0
    assert varying.sum() < 39
    assert hvg.genes.tolist() == np.flatnonzero(varying).tolist()


def test_fitting_sees_only_the_cells_it_was_given():
    x_NxG = counts(300, 800)
    pca = baselines.fit_pca(x_NxG[:100])
    direct = baselines.fit_pca(sparse.csr_matrix(x_NxG.toarray()[:100]))
    assert np.array_equal(pca.hvg.genes, direct.hvg.genes)
    np.testing.assert_array_equal(pca.components_DxG, direct.components_DxG)
    assert baselines.apply_pca(pca, x_NxG[100:]).shape == (200, 50)
    one_by_one = np.vstack([baselines.apply_pca(pca, x_NxG[i]) for i in range(100, 104)])
    np.testing.assert_allclose(
        one_by_one, baselines.apply_pca(pca, x_NxG[100:104]), rtol=1e-4, atol=1e-4
    )


def test_components_are_those_of_a_singular_value_decomposition():
    x_NxG = counts(120, 500)
    pca = baselines.fit_pca(x_NxG, n_components=8)
    dense = baselines.apply_hvg(pca.hvg, x_NxG).astype(float)
    u_NxN, s_N, _ = np.linalg.svd(dense - dense.mean(0), full_matrices=False)
    expected = np.abs(u_NxN[:, :8] * s_N[:8])
    out = baselines.apply_pca(pca, x_NxG)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.abs(out), expected, rtol=1e-3, atol=1e-3)


def test_expression_is_of_all_genes_totals():
    x_NxG = counts(80, 400)
    hvg = baselines.fit_hvg(x_NxG, n_genes=30)
    out = baselines.apply_hvg(hvg, x_NxG)
    expected = np.log1p(x_NxG.toarray() / x_NxG.sum(1).A1[:, None] * 1e4)[:, hvg.genes]
    assert out.shape == (80, 30) and out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_empty_cells_are_zero_expression():
    x_NxG = counts(60, 300).tolil()
    x_NxG[5] = 0
    x_NxG = x_NxG.tocsr()
    x_NxG.eliminate_zeros()
    pca = baselines.fit_pca(x_NxG, n_components=4)
    assert (baselines.apply_hvg(pca.hvg, x_NxG)[5] == 0).all()
    expected = -pca.mean_G @ pca.components_DxG.T
    np.testing.assert_allclose(baselines.apply_pca(pca, x_NxG)[5], expected, rtol=1e-4, atol=1e-5)


def test_refusals_say_what_is_wrong():
    x_NxG = counts(60, 300)
    hvg = baselines.fit_hvg(x_NxG)
    with pytest.raises(ValueError, match="299 genes given, 300 at fitting"):
        baselines.apply_hvg(hvg, x_NxG[:, :299])
    with pytest.raises(ValueError, match="at least two"):
        baselines.fit_hvg(x_NxG[:1])
    for constant in (np.zeros((4, 3), np.int32), np.ones((4, 3), np.int32)):
        with pytest.raises(ValueError, match="none of 3 genes varies over the 4 fitting cells"):
            baselines.fit_hvg(sparse.csr_matrix(constant))


def two_batches(n_cells: int = 240):
    """Two types in two batches; the second batch is sequenced with some genes three times over."""
    rng = np.random.default_rng(4)
    type_N, batch_N = rng.integers(0, 2, (2, n_cells))
    mean_NxG = np.full((n_cells, 300), 1.0)
    mean_NxG[type_N == 1, :60] *= 4
    mean_NxG[batch_N == 1, 60:120] *= 3
    batch = np.array(["first", "second"])[batch_N]
    return sparse.csr_matrix(rng.poisson(mean_NxG).astype(np.int32)), type_N, batch


def test_harmony_removes_the_batch_and_leaves_the_types():
    counts_NxG, type_N, batch = two_batches()
    corrected = baselines.fit_harmony(counts_NxG, None, batch, seed=0)
    before = baselines.apply_pca(baselines.fit_pca(counts_NxG), counts_NxG)
    assert corrected.shape == before.shape == (240, 50) and corrected.dtype == np.float32

    def apart(x_NxD, side_N):
        """Distance of the means of the sides over the spread within them."""
        means = [x_NxD[side_N == side].mean(0) for side in np.unique(side_N)]
        return np.linalg.norm(means[0] - means[1]) / x_NxD.std(0).max()

    assert apart(corrected, batch) < 0.75 * apart(before, batch)
    assert apart(corrected, type_N) > apart(before, type_N) > 1
    again = baselines.fit_harmony(counts_NxG, None, batch, seed=0)
    assert (again == corrected).all()


@pytest.mark.slow
def test_harmony_mixes_the_technologies_of_real_cells(real_data):
    cells = anndata.read_h5ad(real_data / "pbmc_3_technologies.h5ad")
    counts_NxG = sparse.csr_matrix(cells.X)
    batch, types = (cells.obs[name].to_numpy(str) for name in ("batch", "cell_type"))
    before = baselines.apply_pca(baselines.fit_pca(counts_NxG), counts_NxG)
    after = baselines.fit_harmony(counts_NxG, None, batch, seed=0)

    def named(x_NxD, names):
        return cross_val_score(KNeighborsClassifier(15), x_NxD, names, cv=3).mean()

    assert named(before, batch) > 0.95 and named(after, batch) < 0.55
    assert named(after, types) > 0.98


@pytest.mark.parametrize("fit", [
    lambda counts, batch: baselines.fit_harmony(counts, None, batch, seed=0),
    lambda counts, batch: baselines.fit_scvi(counts, batch, seed=0),
])  # fmt: skip
def test_corrections_need_two_batches_and_one_for_each_cell(fit):
    counts_NxG, _, batch = two_batches(40)
    for given, message in (
        (np.full(40, "one"), "1 batches named for 40 of 40"),
        (np.where(np.arange(40) < 3, "", batch), "2 batches named for 37 of 40"),
        (batch[:9], "named for 9 of 40"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(counts_NxG, given)


def test_scvi_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "scvi", None)
    counts_NxG, _, batch = two_batches(40)
    with pytest.raises(ValueError, match=r"scaling\[scvi\]"):
        baselines.fit_scvi(counts_NxG, batch, seed=0)
