"""Integration scores: known answers, and scikit-learn's and plain NumPy's own figures."""

import warnings

import anndata
import igraph
import numpy as np
import pytest
import scanpy
from scipy import stats
from scipy.optimize import brentq
from sklearn.metrics import (
    adjusted_rand_score,
    f1_score,
    normalized_mutual_info_score,
    silhouette_samples,
    silhouette_score,
)

from scaling.evaluate import baselines, batch_mixing, components, neighbourhoods

with warnings.catch_warnings():
    # As in neighbourhoods.py, of a part not used here.
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    import scib_metrics

ALL = {
    *("asw_label", "nmi", "ari", "avg_bio", "batch_score", "pcr_score", "average_batch_score"),
    *("pcr_before", "pcr_after", "ilisi", "clisi", "kbet", "graph_connectivity"),
    *("isolated_labels_asw", "isolated_labels_f1"),
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
    found = scored(embedding, labels, batch, before, seed=seed)
    return {name: score.value for name, score in found.items()}


def scored(embedding, labels, batch, before, **how):
    found = batch_mixing.integration(embedding, labels, batch, before, **({"seed": 0} | how))
    assert [score.name for score in found] == list(batch_mixing.NAMES)
    return {score.name: score for score in found}


def no_value(score) -> str:
    """The note of a score that has no value."""
    assert score.value is score.low is score.high is None
    return score.note


def test_types_apart_and_batches_mixed_score_near_one():
    x_NxD, labels, batch = cells()
    before_NxD, _, _ = cells(shift=30.0)
    scores = scored(x_NxD, labels, batch, before_NxD)
    assert set(scores) == ALL
    isolated = {name for name in ALL if name.startswith("isolated")}
    assert all(no_value(scores[n]) == "every label lies in all batches" for n in isolated)
    # A share of next to nothing grows in every resample, in which cells repeat.
    grown = {"pcr_after", "pcr_score"}
    assert all(scores[name].note == "" for name in ALL - isolated - grown)
    assert all(scores[name].note.startswith("no interval: ") for name in grown)
    assert all(scores[name].low is None for name in grown)
    assert all(scores[name].n == N_CELLS for name in ALL - isolated)
    value = {name: scores[name].value for name in ALL - isolated}
    assert value["nmi"] == pytest.approx(1.0) and value["ari"] == pytest.approx(1.0)
    assert value["asw_label"] > 0.9
    assert value["batch_score"] > 0.94 and value["pcr_score"] > 0.97
    assert value["kbet"] > 0.9 and value["ilisi"] > 0.8
    assert value["clisi"] > 0.99 and value["graph_connectivity"] == 1.0
    assert all(type(figure) is float for figure in value.values())


def test_batches_apart_score_low():
    mixed, apart = values(*cells()), values(*cells(shift=40.0))
    assert apart["batch_score"] < 0.15 < 0.94 < mixed["batch_score"]
    assert apart["kbet"] == 0.0 and apart["ilisi"] < 0.01
    assert apart["graph_connectivity"] == 0.5  # of each type, one batch's half


def test_shuffled_labels_are_not_found():
    x_NxD, labels, batch = cells()
    value = values(x_NxD, np.random.default_rng(0).permutation(labels), batch)
    assert abs(value["ari"]) < 0.05 and value["nmi"] < 0.1
    assert value["asw_label"] == pytest.approx(0.5, abs=0.03)
    assert value["clisi"] < 0.2


def test_means_are_of_the_parts():
    x_NxD, labels, batch = cells(apart=4.0, shift=2.0)
    value = values(x_NxD, labels, batch, before=cells(shift=20.0)[0])
    parts = value["asw_label"] + value["nmi"] + value["ari"]
    assert value["avg_bio"] == pytest.approx(parts / 3)
    batch_parts = value["batch_score"] + value["pcr_score"]
    assert value["average_batch_score"] == pytest.approx(batch_parts / 2)
    assert 0 < value["pcr_score"] < 1
    lost = value["pcr_before"] - value["pcr_after"]
    assert value["pcr_score"] == pytest.approx(lost / value["pcr_before"])


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


def graph_of(x_NxD, n: int):
    return neighbourhoods.nearest(neighbourhoods.search(x_NxD.astype(np.float32)), n)


def odd_cells():
    """Types that overlap, batches that half mix, one type in a single batch, one of few cells."""
    x_NxD, labels, batch = cells(apart=3.0, shift=2.0, seed=3)
    batch[::7] = "z"
    labels[:9] = "few"
    batch[labels == "a"] = "x"
    return x_NxD, labels, batch


def test_every_value_is_that_of_scib_metrics():
    """Of all cells counted once; its kBET searches the neighbours approximately."""
    x_NxD, labels, batch = odd_cells()
    x_NxD = x_NxD.astype(np.float32)
    before_NxD = cells(apart=3.0, shift=4.0, n_dims=60)[0].astype(np.float32)
    value = values(x_NxD, labels, batch, before_NxD)
    around, graph = neighbourhoods.search(x_NxD), graph_of(x_NxD, 15)
    clusterings = [
        scib_metrics.nmi_ari_cluster_labels_leiden(
            graph, labels, optimize_resolution=False, resolution=resolution, seed=0
        )
        for resolution in batch_mixing.RESOLUTIONS
    ]
    best = max(clusterings, key=lambda clustering: clustering["nmi"])
    expected = {
        "asw_label": scib_metrics.silhouette_label(x_NxD, labels),
        "batch_score": scib_metrics.silhouette_batch(x_NxD, labels, batch),
        "nmi": best["nmi"],
        "ari": best["ari"],
        "ilisi": scib_metrics.ilisi_knn(around, batch),
        "clisi": scib_metrics.clisi_knn(around, labels),
        "isolated_labels_asw": scib_metrics.isolated_labels(x_NxD, labels, batch),
    }
    for name, x, kept in (("pcr_before", before_NxD, 50), ("pcr_after", x_NxD, 6)):
        expected[name] = scib_metrics.utils.principal_component_regression(
            x, batch, categorical=True, n_components=kept
        )
    for name, figure in expected.items():
        assert value[name] == pytest.approx(figure, abs=2e-5), name
        assert 0.02 < figure < 0.98, name


@pytest.mark.slow
def test_kbet_finds_what_scib_metrics_approximates():
    """Three times as many cells of one batch, so that equal shares are not what is expected."""
    x_NxD, _, batch = cells(apart=0.0, shift=1.0)
    x_NxD = np.r_[x_NxD, x_NxD + 0.01]
    batch = np.r_[batch, batch]
    labels = np.repeat(["p", "q"], N_CELLS)
    kept = (batch == "x") | (np.arange(2 * N_CELLS) % 3 == 0)
    x_NxD, batch, labels = x_NxD[kept], batch[kept], labels[kept]
    accepted_N = neighbourhoods.kbet_accepted(graph_of(x_NxD, 50), labels, batch)
    rates = [accepted_N[labels == label].mean() for label in ("p", "q")]
    reference = scib_metrics.kbet_per_label(graph_of(x_NxD, 50), batch, labels)
    assert np.mean(rates) == pytest.approx(reference, abs=0.02)
    assert 0.2 < reference < 0.95


def test_the_largest_of_a_label_s_parts_is_found():
    x_NxD, _, _ = cells(apart=0.0)
    labels = np.repeat(["a", "b"], N_CELLS // 2)
    x_NxD[:20] += 500.0  # the first cells of "a" are its smaller part
    x_NxD[-100:] -= 500.0  # the last ones of "b" its larger part
    largest_N = neighbourhoods.in_largest_component(graph_of(x_NxD, 15), labels)
    cell = np.arange(N_CELLS)
    assert (largest_N == ((cell >= 20) & (cell < 120) | (cell >= 140))).all()


def test_kbet_tests_only_labels_of_enough_cells_in_two_batches():
    x_NxD, labels, batch = odd_cells()
    accepted_N = neighbourhoods.kbet_accepted(graph_of(x_NxD, 50), labels, batch)
    tested = set(labels[np.isfinite(accepted_N)])
    assert tested == {"b", "c"}  # "few" has 9 cells, "a" one batch


def test_kbet_rejects_labels_that_fall_to_pieces():
    """Nine pieces of 27 cells, too few to be tested with k = 30: three times that is asked."""
    x_NxD = np.random.default_rng(0).normal(size=(N_CELLS, 4))
    x_NxD += 100 * (np.arange(N_CELLS) % 9)[:, None]
    batch = np.array(["x", "y"])[np.arange(N_CELLS) // 9 % 2]
    graph = graph_of(x_NxD, 20)
    whole = neighbourhoods.kbet_accepted(graph, np.full(N_CELLS, "a"), batch)
    assert (whole == 0).all()


def test_kbet_leaves_out_small_pieces():
    x_NxD, _, batch = cells(apart=0.0)
    x_NxD[:30] += 500.0  # an eighth of the cells, too few for k = 30
    accepted_N = neighbourhoods.kbet_accepted(graph_of(x_NxD, 20), np.full(N_CELLS, "a"), batch)
    assert np.isnan(accepted_N[:30]).all() and accepted_N[30:].mean() > 0.9


def test_the_graph_is_that_of_scanpy():
    """Far from the origin, where the distance of a cell to itself is not computed as 0."""
    x_NxD = cells(apart=3.0, n_dims=20)[0].astype(np.float32) + 30
    data = anndata.AnnData(obsm={"x": x_NxD})
    scanpy.pp.neighbors(data, n_neighbors=15, use_rep="x")
    ours = graph_of(x_NxD, 15).knn_graph_connectivities
    assert abs(ours - data.obsp["connectivities"]).max() < 1e-3


def test_a_cell_is_its_own_first_neighbour_even_of_equal_cells():
    x_NxD = np.repeat(cells()[0][:8], 30, axis=0)
    near = neighbourhoods.search(x_NxD.astype(np.float32))
    assert (near.indices[:, 0] == np.arange(N_CELLS)).all() and (near.distances[:, 0] == 0).all()
    assert (near.indices[:, 1:] != np.arange(N_CELLS)[:, None]).all()


def test_lisi_has_the_perplexity_asked_for():
    """Cell by cell: the width of the kernel by bisection, then Simpson's index as it is written."""
    x_NxD, labels, _ = odd_cells()
    near = neighbourhoods.search(x_NxD)
    found = neighbourhoods.lisi(near, labels)
    for cell in range(0, N_CELLS, 12):
        others = near.indices[cell] != cell
        far, names = near.distances[cell][others], labels[near.indices[cell][others]]

        def shares(beta, far=far):
            weights = np.exp(-beta * (far - far.min()))
            return weights / weights.sum()

        beta = brentq(lambda b, s=shares: stats.entropy(s(b)) - np.log(90 // 3), 1e-3, 1e3)
        simpson = sum(shares(beta)[names == name].sum() ** 2 for name in set(names))
        assert found[cell] == pytest.approx(1 / simpson, rel=1e-3)
    assert np.ptp(found) > 1


def test_lisi_of_neighbours_that_all_lie_equally_far_is_unknown():
    near = neighbourhoods.search(np.eye(16, dtype=np.float32))
    assert np.isnan(neighbourhoods.lisi(near, np.array(list("ab" * 8)))).all()


def test_lisi_is_the_same_in_pieces(monkeypatch):
    x_NxD, labels, _ = odd_cells()
    near = neighbourhoods.search(x_NxD)
    whole = neighbourhoods.lisi(near, labels)
    monkeypatch.setattr(neighbourhoods, "CELLS", 100)
    np.testing.assert_allclose(neighbourhoods.lisi(near, labels), whole, rtol=1e-5)


def test_components_are_the_same_in_pieces(monkeypatch):
    x_NxF, _, batch = cells(shift=2.0, n_dims=70)
    share = literal_share(x_NxF, batch, 50)
    for rows in (components.ROWS, 37):
        monkeypatch.setattr(components, "ROWS", rows)
        assert batch_mixing.batch_variance(x_NxF, batch) == pytest.approx(share, rel=1e-9)


def test_isolated_labels_are_those_in_fewest_batches():
    x_NxD, labels, batch = odd_cells()  # "a" is in one batch
    scores = scored(x_NxD, labels, batch, x_NxD)
    width = (silhouette_samples(x_NxD, labels)[labels == "a"].mean() + 1) / 2
    assert scores["isolated_labels_asw"].value == pytest.approx(width, abs=1e-5)
    assert scores["isolated_labels_asw"].n == (labels == "a").sum()
    clusterings = neighbourhoods.clusterings(graph_of(x_NxD, 15), batch_mixing.RESOLUTIONS, 0)
    best = max(
        f1_score(labels == "a", clusters == cluster)
        for clusters in clusterings
        for cluster in np.unique(clusters)
    )
    assert scores["isolated_labels_f1"].value == pytest.approx(best)
    assert 0.4 < best < 1.0


def test_intervals_hold_the_values():
    x_NxD, labels, batch = odd_cells()
    scores = scored(x_NxD, labels, batch, cells(shift=5.0, n_dims=60)[0])
    for name, score in scores.items():
        assert score.interval == "cells", name
        assert score.low <= score.value <= score.high, name
        assert 0 < score.high - score.low < 0.4, name
        assert score.n <= N_CELLS


def test_donors_are_drawn_but_never_batches():
    x_NxD, labels, batch = odd_cells()
    donors = np.arange(N_CELLS).astype(str)
    for name in ("x", "y", "z"):
        donors[batch == name] = [f"{name}{i % 4}" for i in range((batch == name).sum())]
    assert scored(x_NxD, labels, batch, x_NxD, donors=donors)["nmi"].interval == "12 donors"
    crossed = np.where(batch == "z", "one", donors)  # batch z is a single donor
    assert scored(x_NxD, labels, batch, x_NxD, donors=crossed)["nmi"].interval == "cells"
    with pytest.raises(ValueError, match="give one per cell"):
        scored(x_NxD, labels, batch, x_NxD, donors=donors[1:])


@pytest.mark.parametrize(("n_dims", "n_components"), [(6, 6), (50, 50), (90, 50)])
def test_batch_variance_is_principal_component_regression(n_dims, n_components):
    x_NxD, _, batch = cells(apart=1.0, shift=1.5, n_dims=n_dims)
    batch[::5] = "z"
    share = batch_mixing.batch_variance(x_NxD.astype(np.float32), batch)
    assert share == pytest.approx(literal_share(x_NxD, batch, n_components), rel=1e-4)
    assert 0.005 < share < 0.9
    reference = scib_metrics.utils.principal_component_regression(
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
    scores = scored(x_NxD, labels, np.full(N_CELLS, "x"), x_NxD)
    without = {name for name in ALL if scores[name].value is None}
    assert without == {*batch_mixing.BATCHES, "average_batch_score"}
    assert all(scores[name].note == "one batch" for name in batch_mixing.BATCHES)
    note = "batch_score: one batch; pcr_score: one batch"
    assert no_value(scores["average_batch_score"]) == note
    assert scores["avg_bio"].value > 0.9


def test_one_label_has_no_label_scores():
    x_NxD, _, batch = cells()
    scores = scored(x_NxD, np.full(N_CELLS, "a"), batch, x_NxD)
    for score in (*batch_mixing.LABELS, *batch_mixing.ISOLATED):
        assert no_value(scores[score]) == "1 label(s) in 240 cells"
    assert "nmi: 1 label(s)" in no_value(scores["avg_bio"])
    assert scores["batch_score"].value > 0.9


def test_a_label_of_its_own_for_each_cell_leaves_nothing_to_compare():
    x_NxD, _, batch = cells()
    scores = scored(x_NxD, np.arange(N_CELLS).astype(str), batch, x_NxD)
    for score in (*batch_mixing.LABELS, *batch_mixing.ISOLATED):
        assert no_value(scores[score]) == "240 label(s) in 240 cells"
    assert no_value(scores["batch_score"]) == "no label lies in two batches"
    assert no_value(scores["kbet"]) == "no label of enough cells lies in two batches"
    assert scores["ilisi"].value > 0.8


def test_batch_that_is_the_label_leaves_nothing_to_mix():
    x_NxD, labels, _ = cells()
    scores = scored(x_NxD, labels, labels, x_NxD)
    assert no_value(scores["batch_score"]) == "no label lies in two batches"
    average = no_value(scores["average_batch_score"])
    assert average == "batch_score: no label lies in two batches"
    assert scores["pcr_score"].value is not None
    assert scores["ilisi"].value == pytest.approx(1 - scores["clisi"].value, abs=1e-6)


def test_an_input_without_batch_variance_has_no_pcr_score():
    x_NxD, labels, _ = cells()
    twice_NxD = np.repeat(x_NxD[::6], 6, 0)  # the same cells in both batches
    batch = np.where(np.arange(N_CELLS) % 2, "y", "x")
    assert batch_mixing.batch_variance(twice_NxD, batch) < 1e-12
    scores = scored(x_NxD, labels, batch, twice_NxD)
    for score in ("pcr_score", "pcr_before"):
        assert no_value(scores[score]) == "the input has no batch variance to remove"
    assert scores["pcr_after"].value > 0


def test_rounding_is_no_variance():
    same_NxG = np.full((201, 3), 1 / 3)
    assert np.abs(same_NxG - same_NxG.mean(0)).max() > 0
    assert batch_mixing.batch_variance(same_NxG, np.arange(201) % 2) is None


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6])
def test_a_collapsed_embedding_has_no_scores(constant):
    x_NxD, labels, batch = cells()
    same_NxD = np.full((N_CELLS, 4), constant, np.float32)
    scores = scored(same_NxD, labels, batch, x_NxD)
    assert set(scores) == ALL
    assert all("the same embedding" in no_value(score) for score in scores.values())


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
