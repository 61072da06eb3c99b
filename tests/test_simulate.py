"""The simulator: known answers for its model, real files' ranges, and labels that are hard."""

import dataclasses

import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split

from scaling.corpus import simulate as simulator
from scaling.corpus.simulate import Simulation, simulate

SMALL = Simulation(cells=600, genes=300, cell_types=4, donors=4, batches=2, programs=10)
HELD_OUT = ["donor_10", "donor_11", "donor_12"]  # one of each batch


def _simulated(folder, settings) -> anndata.AnnData:
    simulate(folder / "cells.h5ad", settings)
    return anndata.read_h5ad(folder / "cells.h5ad")


@pytest.fixture(scope="module")
def default(tmp_path_factory) -> anndata.AnnData:
    """The simulation at full size, all settings at their default."""
    return _simulated(tmp_path_factory.mktemp("default"), Simulation())


def _describe(counts: sparse.csr_matrix) -> dict[str, float]:
    """Figures by which count matrices of any size compare."""
    cells = counts.shape[0]
    mean = np.asarray(counts.mean(0)).ravel()
    variance = np.asarray(counts.astype(float).power(2).mean(0)).ravel() - mean**2
    zeros = 1 - counts.getnnz(0) / cells
    fair, middling = mean > 0.05, (mean > 1) & (mean < 3)
    return {
        "median genes per cell": np.median(counts.getnnz(1)),
        "share of zeros": zeros.mean(),
        "slope of log variance on log mean": np.polyfit(
            np.log(mean[fair]), np.log(variance[fair]), 1)[0],
        "SD of log mean": np.log(mean[fair]).std(),
        "SD of log library size": np.log(counts.sum(1)).std(),
        "zeros beyond Poisson, genes of mean 1 to 3": np.median((zeros - np.exp(-mean))[middling]),
    }


def test_figures_lie_within_those_of_real_cells(default, real_data):
    files = sorted(set(real_data.glob("*.h5ad")) - {real_data / "not_counts.h5ad"})
    real = [_describe(anndata.read_h5ad(file).X.tocsr()) for file in files]
    assert len(real) >= 8
    for name, value in _describe(default.X).items():
        low, high = min(r[name] for r in real), max(r[name] for r in real)
        assert low < value < high, f"{name}: {value} outside real cells' {low} to {high}"


def _embedding(cells: anndata.AnnData) -> np.ndarray:
    cells = cells.copy()
    cells.X = cells.X.astype(np.float32)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=2000, flavor="seurat")
    cells = cells[:, cells.var["highly_variable"]].copy()
    sc.pp.pca(cells, n_comps=30, random_state=0)
    return cells.obsm["X_pca"]


def _f1_per_type(embedding, labels, train, test) -> np.ndarray:
    fitted = LogisticRegression(max_iter=1000).fit(embedding[train], labels[train])
    return f1_score(labels[test], fitted.predict(embedding[test]), average=None)


def _assert_hard_but_possible(cells: anndata.AnnData) -> None:
    embedding, types = _embedding(cells), np.asarray(cells.obs["cell_type"])
    held_out = cells.obs["donor"].isin(HELD_OUT).to_numpy()
    by_donor = _f1_per_type(embedding, types, ~held_out, held_out)
    everything = np.arange(cells.n_obs)
    train, test = train_test_split(everything, test_size=0.2, random_state=0, stratify=types)
    at_random = _f1_per_type(embedding, types, train, test)
    assert 0.75 < by_donor.mean() < 0.95
    assert 0.75 < at_random.mean() < 0.95
    # Types are named from common to rare.
    assert by_donor[-4:].mean() < by_donor[:4].mean() - 0.05
    batches = np.asarray(cells.obs["batch"])
    assert _f1_per_type(embedding, batches, train, test).mean() > 0.9


@pytest.mark.slow
def test_usual_pipeline_tells_types_apart_but_not_fully(default):
    _assert_hard_but_possible(default)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_usual_pipeline_at_other_seeds(tmp_path, seed):
    _assert_hard_but_possible(_simulated(tmp_path, Simulation(seed=seed)))


def test_file_holds_integer_counts_and_every_label_everywhere(default):
    assert isinstance(default.X, sparse.csr_matrix)
    assert default.shape == (10_000, 4_000) and default.X.dtype == np.int32
    assert default.X.data.min() >= 1 and default.X.has_canonical_format
    assert default.X.getnnz(1).min() > 0
    assert default.obs_names.is_unique and default.var_names.is_unique
    assert default.var_names[0] == "SIM00001" and default.var.index.name == "gene_id"
    assert all(default.obs[c].dtype == "category" for c in ("cell_type", "donor", "batch"))
    pairs = default.obs.groupby(["donor", "cell_type"], observed=True).size().unstack()
    assert pairs.shape == (12, 12) and pairs.min().min() >= 1
    assert (default.obs.groupby("donor", observed=True)["batch"].nunique() == 1).all()
    assert (default.obs.groupby("batch", observed=True)["donor"].nunique() == 4).all()
    share = default.obs["cell_type"].value_counts(normalize=True)
    assert share.min() < 0.02 < 0.2 < share.max()
    assert default.uns["simulation"] == dataclasses.asdict(Simulation())


def test_smallest_file_still_holds_every_pair(tmp_path):
    least = dataclasses.replace(SMALL, cells=16)
    pairs = _simulated(tmp_path, least).obs.groupby(["donor", "cell_type"], observed=True).size()
    assert len(pairs) == 16 and (pairs == 1).all()


@pytest.mark.parametrize("mean", [2.0, 20.0])
def test_counts_without_effects_are_negative_binomial(mean):
    """One gene rate for all: mean m, variance m + m^2 (dispersion + rise / sqrt(m)), P(0)."""
    flat = Simulation(
        cells=4000, genes=50, cell_types=1, donors=1, batches=1, depth=50 * mean, library_sd=0,
        base_sd=0, type_sd=0, state_sd=0, batch_sd=0, donor_sd=0,
    )
    counts = simulator._draw_counts(flat, *simulator._draw_labels(flat)).toarray()
    dispersion = flat.dispersion + flat.dispersion_rise / np.sqrt(mean)
    assert counts.mean() == pytest.approx(mean, rel=0.01)
    assert counts.var() == pytest.approx(mean + mean**2 * dispersion, rel=0.03)
    expected = stats.nbinom.pmf(0, 1 / dispersion, 1 / (1 + mean * dispersion))
    assert np.mean(counts == 0) == pytest.approx(expected, abs=0.003)


def test_library_sizes_and_depths_have_the_set_spread(default):
    settings, library = Simulation(), np.log(np.asarray(default.X.sum(1)).ravel())
    batch = default.obs["batch"].cat.codes.to_numpy()
    medians = np.array([np.median(library[batch == b]) for b in range(3)])
    assert medians.mean() == pytest.approx(np.log(settings.depth), abs=0.05)
    assert medians.std() == pytest.approx(settings.batch_depth_sd, abs=0.03)
    assert (library - medians[batch]).std() == pytest.approx(settings.library_sd, abs=0.02)


def _log_profiles(counts: sparse.csr_matrix, group: np.ndarray) -> np.ndarray:
    """Log share of each gene with 50 counts in all groups, centred, (groups, genes)."""
    sums = np.stack([np.asarray(counts[group == g].sum(0)).ravel() for g in np.unique(group)])
    sums = sums[:, sums.min(0) >= 50]
    assert sums.shape[1] >= 200
    logs = np.log(sums / sums.sum(1, keepdims=True))
    return logs - logs.mean(1, keepdims=True)


def test_batches_and_donors_shift_genes_as_set():
    """Log profiles of donors vary by donor_sd^2, those of batches by batch_sd^2 more."""
    settings = Simulation(cells=1200, genes=300, cell_types=1, donors=6, batches=3, depth=3000,
                          base_sd=0.5, state_sd=0)
    cell_type, donor = simulator._draw_labels(settings)
    profiles = _log_profiles(simulator._draw_counts(settings, cell_type, donor), donor)
    pairs = profiles.reshape(2, 3, -1)  # donors d and d + 3 share batch d
    between_batches = settings.batch_sd**2 + settings.donor_sd**2 / 2
    assert pairs.var(0, ddof=1).mean() == pytest.approx(settings.donor_sd**2, rel=0.2)
    assert pairs.mean(0).var(0, ddof=1).mean() == pytest.approx(between_batches, rel=0.2)


def test_relatives_in_the_tree_of_types_are_alike(default):
    """Distance between two types' profiles grows with the steps between them in the tree."""
    profiles = _log_profiles(default.X, default.obs["cell_type"].cat.codes.to_numpy())
    profiles = profiles[::-1]  # the last type is the root
    lineage = [{0}]
    for child in range(1, 12):
        lineage.append(lineage[(child - 1) // 2] | {child})
    pairs = [(i, j) for i in range(12) for j in range(i)]
    steps = [len(lineage[i] ^ lineage[j]) for i, j in pairs]
    apart = [np.linalg.norm(profiles[i] - profiles[j]) for i, j in pairs]
    assert stats.spearmanr(steps, apart).statistic > 0.7


def _leading_share(settings: Simulation) -> float:
    """Largest eigenvalue of the gene correlations in log counts of one homogeneous group."""
    counts = simulator._draw_counts(settings, *simulator._draw_labels(settings)).toarray()
    logs = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    return np.linalg.eigvalsh(np.corrcoef(logs.T))[-1]


def test_genes_of_a_program_vary_together_within_a_type():
    alone = Simulation(cells=1000, genes=150, cell_types=1, donors=1, batches=1, base_sd=0,
                       depth=3000, programs=3, genes_per_program=0.2)
    still = dataclasses.replace(alone, state_sd=0)
    # Without programs, correlations of 150 genes over 1,000 cells reach about
    # (1 + sqrt(150 / 1000))^2 = 1.92 by chance (Marchenko and Pastur 1967).
    assert _leading_share(still) < 3 < 6 < _leading_share(alone)


def test_same_seed_same_cells_other_seed_others(tmp_path):
    first, again = _simulated(tmp_path, SMALL), _simulated(tmp_path, SMALL)
    other = _simulated(tmp_path, dataclasses.replace(SMALL, seed=1))
    assert (first.X != again.X).nnz == 0 and first.obs.equals(again.obs)
    assert (first.X != other.X).nnz > 0.1 * first.X.nnz
    assert not first.obs["cell_type"].equals(other.obs["cell_type"])


def test_a_cell_depends_on_no_other_cell():
    cell_type, donor = simulator._draw_labels(SMALL)
    whole = simulator._draw_counts(SMALL, cell_type, donor)
    fewer = dataclasses.replace(SMALL, cells=50)
    cell_type[0], donor[0] = (cell_type[0] + 1) % 4, (donor[0] + 1) % 4
    part = simulator._draw_counts(fewer, cell_type[:50], donor[:50])
    assert (whole[0] != part[0]).nnz > 0
    assert (whole[1:50] != part[1:]).nnz == 0


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def write_half(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "old.h5ad").write_bytes(b"old")
    monkeypatch.setattr(anndata.AnnData, "write_h5ad", write_half)
    for name in ("new.h5ad", "old.h5ad"):
        with pytest.raises(OSError, match="disk full"):
            simulate(tmp_path / name, SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["old.h5ad"]
    assert (tmp_path / "old.h5ad").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cells": 100}, "at least 144 cells"),
        ({"cells": 5, "cell_types": 12, "donors": 1, "batches": 1}, "at least 12 cells"),
        ({"genes": 0}, "genes=0: give 1 or more"),
        ({"cells": -1}, "cells=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"programs": 2.5}, "programs=2.5: give a whole number"),
        ({"batch_sd": -0.1}, "batch_sd=-0.1"),
        ({"state_sd": float("nan")}, "state_sd=nan: give a finite number"),
        ({"depth": 0}, "depth=0"),
        ({"depth": "800"}, "depth='800'"),
        ({"rarest": 0}, "rarest=0"),
        ({"genes_per_program": 1.5}, "genes_per_program=1.5"),
        ({"donors": 2}, "donors=2 cannot fill batches=3"),
    ],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Simulation(**wrong)
