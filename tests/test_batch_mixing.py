"""Integration scores: known answers, and scikit-learn's and plain NumPy's own figures."""

import anndata
import igraph
import numpy as np
import pytest
from sklearn.metrics import (
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)

from scaling.evaluate import baselines, batch_mixing

ALL = {
    *("asw_label", "nmi", "ari", "avg_bio", "batch_score", "pcr_score", "average_batch_score"),
}
N_CELLS = 240


def cells(apart: float = 20.0, shift: float = 0.0, seed: int = 0, n_dims: int = 6):
    """Three types with centres `apart` from each other, two batches `shift` from each other."""
    rng = np.random.default_rng(seed)
    label, batch = np.arange(N_CELLS) % 3, np.arange(N_CELLS) // 3 % 2
    x_NxD = rng.normal(size=(N_CELLS, n_dims))
    x_NxD[:, :3] += apart / np.sqrt(2) * np.eye(3)[label]
    x_NxD[:, 3] += shift * batch
    return x_NxD, np.array(list("abc"))[label], np.array(["x", "y"])[batch]


def values(embedding, labels, batch, before=None, seed=0):
    before = embedding if before is None else before
    scores = batch_mixing.integration(embedding, labels, batch, before, seed=seed)
    return {score: value for score, (value, note) in scores.items()}


def test_types_apart_and_batches_mixed_score_near_one():
    x_NxD, labels, batch = cells()
    before_NxD, _, _ = cells(shift=30.0)
    scores = batch_mixing.integration(x_NxD, labels, batch, before_NxD, seed=0)
    assert set(scores) == ALL
    assert all(note == "" for _, note in scores.values())
    value = {score: pair[0] for score, pair in scores.items()}
    assert value["nmi"] == pytest.approx(1.0) and value["ari"] == pytest.approx(1.0)
    assert value["asw_label"] > 0.9
    assert value["batch_score"] > 0.94 and value["pcr_score"] > 0.97
    assert all(type(figure) is float for figure in value.values())


def test_batches_apart_score_low():
    mixed, apart = values(*cells()), values(*cells(shift=40.0))
    assert apart["batch_score"] < 0.15 < 0.94 < mixed["batch_score"]


def test_shuffled_labels_are_not_found():
    x_NxD, labels, batch = cells()
    value = values(x_NxD, np.random.default_rng(0).permutation(labels), batch)
    assert abs(value["ari"]) < 0.05 and value["nmi"] < 0.1
    assert value["asw_label"] == pytest.approx(0.5, abs=0.03)


def test_means_are_of_the_parts():
    x_NxD, labels, batch = cells(apart=4.0, shift=2.0)
    value = values(x_NxD, labels, batch, before=cells(shift=20.0)[0])
    parts = value["asw_label"] + value["nmi"] + value["ari"]
    assert value["avg_bio"] == pytest.approx(parts / 3)
    batch_parts = value["batch_score"] + value["pcr_score"]
    assert value["average_batch_score"] == pytest.approx(batch_parts / 2)
    assert 0 < value["pcr_score"] < 1


def test_silhouettes_are_those_of_scikit_learn():
    x_NxD, labels, batch = cells(apart=3.0, shift=2.0)
    batch[labels == "a"] = "x"  # in one batch only: left out of the batch score
    batch[:7] = "z"
    batch[labels == "a"] = "x"
    value = values(x_NxD, labels, batch)
    assert value["asw_label"] == pytest.approx((silhouette_score(x_NxD, labels) + 1) / 2, abs=1e-5)
    per_label = [
        np.mean(1 - np.abs(silhouette_samples(x_NxD[labels == label], batch[labels == label])))
        for label in ("b", "c")
    ]
    assert value["batch_score"] == pytest.approx(np.mean(per_label), abs=1e-5)


def test_clusters_are_the_best_of_twenty_resolutions(monkeypatch):
    """Records every partition that Leiden gives and scores it with scikit-learn."""
    partitions, resolutions = [], []
    leiden = igraph.Graph.community_leiden

    def recorded(graph, *args, **kwargs):
        found = leiden(graph, *args, **kwargs)
        partitions.append(found.membership)
        resolutions.append(kwargs["resolution"])
        return found

    monkeypatch.setattr(igraph.Graph, "community_leiden", recorded)
    x_NxD, labels, batch = cells(apart=3.5)
    value = values(x_NxD, labels, batch)
    np.testing.assert_allclose(resolutions, np.arange(1, 21) / 10)
    nmi = [normalized_mutual_info_score(labels, found) for found in partitions]
    assert len(set(np.round(nmi, 6))) > 3  # there is something to choose from
    assert value["nmi"] == pytest.approx(max(nmi))
    best = partitions[int(np.argmax(nmi))]
    assert value["ari"] == pytest.approx(adjusted_rand_score(labels, best))
    assert value["nmi"] < 1.0


def literal_share(x_NxF: np.ndarray, batch: np.ndarray, n_components: int) -> float:
    """Principal-component regression as it is written: one least-squares fit per component."""
    u_NxN, s_N, _ = np.linalg.svd(x_NxF - x_NxF.mean(0), full_matrices=False)
    design = np.c_[np.ones(batch.size), *(batch == name for name in np.unique(batch)[1:])]
    variance, r2 = [], []
    for component in (u_NxN * s_N).T[:n_components]:
        fitted = design @ np.linalg.lstsq(design, component, rcond=None)[0]
        r2.append(1 - np.square(component - fitted).sum() / np.square(component).sum())
        variance.append(component.var())
    return float(np.dot(variance, r2) / np.sum(variance))


@pytest.mark.parametrize(("n_dims", "n_components"), [(6, 6), (50, 50), (90, 50)])
def test_batch_variance_is_principal_component_regression(n_dims, n_components):
    x_NxD, _, batch = cells(apart=1.0, shift=1.5, n_dims=n_dims)
    batch[::5] = "z"
    share = batch_mixing.batch_variance(x_NxD.astype(np.float32), batch)
    assert share == pytest.approx(literal_share(x_NxD, batch, n_components), rel=1e-4)
    assert 0.005 < share < 0.9
    reference = batch_mixing.scib_metrics.utils.principal_component_regression(
        x_NxD.astype(np.float32), batch, categorical=True, n_components=n_components
    )
    assert share == pytest.approx(reference, rel=1e-3)


def test_batch_variance_of_fewer_directions_than_components():
    x_NxD, _, batch = cells(shift=3.0)
    turned_NxG = x_NxD @ np.random.default_rng(0).normal(size=(6, 80))
    share = batch_mixing.batch_variance(turned_NxG, batch)
    assert share == pytest.approx(literal_share(turned_NxG, batch, 6), rel=1e-6)


def test_pcr_score_is_one_without_batch_variance_and_zero_with_as_much():
    x_NxD, labels, batch = cells(shift=5.0)
    without_NxD = x_NxD.copy()
    for name in np.unique(batch):
        without_NxD[batch == name] -= x_NxD[batch == name].mean(0)
    assert values(without_NxD, labels, batch, before=x_NxD)["pcr_score"] == pytest.approx(1.0)
    assert values(x_NxD, labels, batch, before=x_NxD)["pcr_score"] == pytest.approx(0, abs=1e-5)
    assert values(x_NxD, labels, batch, before=cells()[0])["pcr_score"] == 0.0  # more than before


def test_one_batch_has_no_batch_scores():
    x_NxD, labels, _ = cells()
    scores = batch_mixing.integration(x_NxD, labels, np.full(N_CELLS, "x"), x_NxD, seed=0)
    assert scores["batch_score"] == scores["pcr_score"] == (None, "one batch")
    assert scores["average_batch_score"] == (None, "batch_score: one batch; pcr_score: one batch")
    assert scores["avg_bio"][0] > 0.9


def test_one_label_has_no_label_scores():
    x_NxD, _, batch = cells()
    scores = batch_mixing.integration(x_NxD, np.full(N_CELLS, "a"), batch, x_NxD, seed=0)
    for score in ("asw_label", "nmi", "ari"):
        assert scores[score] == (None, "1 label(s) in 240 cells")
    assert scores["avg_bio"][0] is None and "nmi: 1 label(s)" in scores["avg_bio"][1]
    assert scores["batch_score"][0] > 0.9


def test_batch_that_is_the_label_leaves_nothing_to_mix():
    x_NxD, labels, _ = cells()
    scores = batch_mixing.integration(x_NxD, labels, labels, x_NxD, seed=0)
    assert scores["batch_score"] == (None, "no label lies in two batches")
    assert scores["average_batch_score"] == (None, "batch_score: no label lies in two batches")
    assert scores["pcr_score"][0] is not None


def test_an_input_without_batch_variance_has_no_pcr_score():
    x_NxD, labels, _ = cells()
    twice_NxD = np.repeat(x_NxD[::6], 6, 0)  # the same cells in both batches
    batch = np.where(np.arange(N_CELLS) % 2, "y", "x")
    assert batch_mixing.batch_variance(twice_NxD, batch) < 1e-12
    scores = batch_mixing.integration(x_NxD, labels, batch, twice_NxD, seed=0)
    assert scores["pcr_score"] == (None, "the input has no batch variance to remove")


def test_rounding_is_no_variance():
    same_NxG = np.full((201, 3), 1 / 3)
    assert np.abs(same_NxG - same_NxG.mean(0)).max() > 0
    assert batch_mixing.batch_variance(same_NxG, np.arange(201) % 2) is None


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_collapsed_embedding_has_no_scores(constant):
    x_NxD, labels, batch = cells()
    same_NxD = np.full((N_CELLS, 4), constant, np.float32)
    scores = batch_mixing.integration(same_NxD, labels, batch, x_NxD, seed=0)
    assert set(scores) == ALL
    assert all(value is None and "the same embedding" in note for value, note in scores.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array(["a"] * 239)}, "pass the same cells to all"),
        ({"before_NxG": np.ones((239, 3))}, "pass the same cells to all"),
        ({"embedding_NxD": np.ones(240)}, "the matrices dense"),
        ({"labels": np.array(["a", None] * 120, object)}, "labels: 120 of 240 cells have none"),
        ({"batch": np.array(["a", np.nan] * 120, object)}, "batch: 120 of 240 cells have none"),
        ({"embedding_NxD": np.full((240, 2), np.inf)}, "embedding holds NaN or infinity"),
        ({"before_NxG": np.full((240, 2), np.nan)}, "before holds NaN or infinity"),
    ],
)
def test_bad_input_is_named(change, message):
    x_NxD, labels, batch = cells()
    given = {"embedding_NxD": x_NxD, "labels": labels, "batch": batch, "before_NxG": x_NxD}
    with pytest.raises(ValueError, match=message):
        batch_mixing.integration(**(given | change), seed=0)


def test_too_few_cells_are_named():
    x_NxD, labels, batch = (array[:14] for array in cells())
    with pytest.raises(ValueError, match="14 cells, and the neighbour graph needs 15"):
        batch_mixing.integration(x_NxD, labels, batch, x_NxD, seed=0)


def test_equal_input_and_seed_give_equal_scores():
    given = cells(apart=3.0, shift=1.0)
    assert values(*given, seed=5) == values(*given, seed=5)


def test_packages_name_the_pinned_version():
    assert "scib-metrics 0.5.10" in batch_mixing.packages()


def test_real_cells_of_three_technologies(real_data):
    """Types that a plain classifier tells apart at 0.995 are found; the batches partly overlap."""
    data = anndata.read_h5ad(real_data / "pbmc_3_technologies.h5ad")[::8]
    counts = data.X.tocsr()
    labels, batch = (data.obs[column].to_numpy() for column in ("cell_type", "batch"))
    pca = baselines.fit_pca(counts)
    x_NxG, x_NxD = baselines.apply_hvg(pca.hvg, counts), baselines.apply_pca(pca, counts)
    share = batch_mixing.batch_variance(x_NxG, batch)
    assert share == pytest.approx(literal_share(x_NxG.astype(float), batch, 50), rel=1e-3)
    value = values(x_NxD, labels, batch, before=x_NxG)
    expected = (silhouette_score(x_NxD, labels) + 1) / 2
    assert value["asw_label"] == pytest.approx(expected, abs=1e-4)
    assert 0.5 < value["nmi"] <= 1.0
    assert value["pcr_score"] < 0.05  # components hold the same batch variance as the genes
