"""Scores by how often cells count: what plain functions give for cells repeated that often."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

from scaling.evaluate import components, weighted

SEEDS = st.integers(0, 2**32 - 1)


def some(seed: int, n: int = 40):
    """Values, labels, clusters that partly follow them, and two sets of weights."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(list("abcd"), n)
    clusters = np.where(rng.random(n) < 0.5, labels, rng.choice(list("stu"), n))
    values = np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n))
    return values, labels, clusters, rng.multinomial(n, np.full(n, 1 / n), size=2).astype(float)


def of_taken(score, labels, clusters, cells):
    return score(labels[cells], clusters[cells])


def check_repeated(statistic, plain, weights_SxN):
    """The statistic of weights and the plain function of which cells, repeated, to take."""
    weights_SxN = np.r_[np.ones((1, weights_SxN.shape[1])), weights_SxN]
    found = statistic(weights_SxN)
    assert found.shape == (len(weights_SxN),)
    cells = np.arange(weights_SxN.shape[1])
    expected = [plain(np.repeat(cells, weights.astype(int))) for weights in weights_SxN]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(SEEDS)
@settings(max_examples=30)
def test_weights_repeat_cells(seed):
    values, labels, clusters, weights = some(seed)

    def of_groups(cells):
        kept = cells[np.isfinite(values[cells])]
        return np.mean([values[kept[labels[kept] == name]].mean() for name in set(labels[kept])])

    check_repeated(weighted.mean_of_means(values, labels), of_groups, weights)
    check_repeated(weighted.mean_of_means(values), lambda cells: np.nanmean(values[cells]), weights)
    check_repeated(weighted.median(values), lambda cells: np.nanmedian(values[cells]), weights)
    for score, plain in (
        (weighted.nmi, normalized_mutual_info_score),
        (weighted.ari, adjusted_rand_score),
    ):
        of_cells = functools.partial(of_taken, plain, labels, clusters)
        check_repeated(score(labels, clusters), of_cells, weights)


@given(SEEDS)
@settings(max_examples=30)
def test_best_cluster_is_found_once_and_its_f1_weighted(seed):
    _, labels, clusters, weights = some(seed)
    other = np.random.default_rng(seed).permutation(clusters)
    best = {}
    for name in ("a", "b"):
        pairs = [(c, cluster) for c in (other, clusters) for cluster in sorted(set(c))]
        best[name] = max(pairs, key=lambda pair: f1_score(labels == name, pair[0] == pair[1]))
    f1 = [
        f1_score(labels == name, clustering == cluster)
        for name, (clustering, cluster) in best.items()
    ]
    statistic = weighted.best_f1(labels, ["a", "b"], [clusters, other])
    assert statistic(np.ones((1, len(labels))))[0] == pytest.approx(np.mean(f1))
    for row in weights:
        assert 0 <= statistic(row[None])[0] <= 1


def test_f1_with_weights_is_that_of_repeated_cells():
    _, labels, clusters, weights = some(5)
    clusters = np.where(labels == "a", "s", "t")
    clusters[:10] = "s"

    def plain(cells):
        return f1_score(labels[cells] == "a", clusters[cells] == "s")

    check_repeated(weighted.best_f1(labels, ["a"], [clusters]), plain, weights)


@given(SEEDS)
@settings(max_examples=30)
def test_share_between_batches_of_repeated_cells(seed):
    _, batch, _, weights = some(seed)
    x_NxK = np.random.default_rng(seed).normal(size=(40, 3)) + (batch == "a")[:, None] + 7.0

    def plain(cells):
        x, b = x_NxK[cells] - x_NxK[cells].mean(0), batch[cells]
        between = sum((b == n).sum() * np.square(x[b == n].mean(0)).sum() for n in set(b))
        return between / np.square(x).sum()

    check_repeated(components.batch_share(x_NxK, batch), plain, weights)


def test_groups_without_weight_are_left_out_and_nothing_is_nan():
    values, groups = np.array([1.0, 2.0, 5.0]), np.array(["a", "a", "b"])
    weights = np.array([[1.0, 1, 0], [0, 0, 2], [0, 0, 0]])
    found = weighted.mean_of_means(values, groups)(weights)
    np.testing.assert_allclose(found, [1.5, 5.0, np.nan])
    np.testing.assert_allclose(weighted.median(values)(weights), [1.5, 5.0, np.nan])


def test_one_cluster_says_nothing_and_one_label_cannot_be_found():
    labels, one = np.array(list("aabb")), np.zeros(4)
    weights = np.array([[1.0, 1, 1, 1], [2, 2, 0, 0]])
    np.testing.assert_allclose(weighted.nmi(labels, one)(weights), [0.0, np.nan])
    np.testing.assert_allclose(weighted.ari(labels, one)(weights), [0.0, np.nan])
