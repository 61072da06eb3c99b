"""Roughness is that of clusters merged one by one, and knows smooth from shuffled."""

import anndata
import numpy as np
import pytest

from scaling.evaluate import baselines, roughness
from scaling.evaluate.roughness import roughness as score


def literal(x_NxD, y_NxK, scale, xd=False):
    """Complete linkage by brute force, a cluster of indices each, and the area by hand.

    y_NxK: the property as K numbers; scale: of their summed variance.
    """
    n = len(x_NxD)
    box = np.sqrt(sum((column.max() - column.min()) ** 2 for column in x_NxD.T))
    apart = [[np.linalg.norm(a - b) / box for b in x_NxD] for a in x_NxD]

    def spread(clusters):
        total = 0.0
        for y_N in y_NxK.T:
            means = [np.mean(y_N[list(c)]) for c in clusters]
            total += np.average((np.array(means) - y_N.mean()) ** 2, weights=[*map(len, clusters)])
        return np.sqrt(scale * total)

    clusters, curve, last = [{i} for i in range(n)], [], -1.0
    curve.append((0.0, spread(clusters), n))
    while len(clusters) > 1:
        far = {
            (i, j): max(apart[a][b] for a in clusters[i] for b in clusters[j])
            for i in range(len(clusters))
            for j in range(i)
        }
        at = min(far.values())
        while len(clusters) > 1:  # all that merge at this distance
            (i, j), distance = min(far.items(), key=lambda pair: pair[1])
            if distance > at + 1e-12:
                break
            clusters[j] |= clusters.pop(i)
            far = {
                (i, j): max(apart[a][b] for a in clusters[i] for b in clusters[j])
                for i in range(len(clusters))
                for j in range(i)
            }
        if at >= last + 0.01 or xd:  # so few cells that every number of clusters is a level
            curve.append((at, spread(clusters), len(clusters)))
            last = at
    curve.append((1.0, 0.0, 1))
    area = 0.0
    for (t0, s0, n0), (t1, s1, n1) in zip(curve, curve[1:], strict=False):
        width = (np.log(n0) - np.log(n1)) / np.log(n) if xd else t1 - t0
        area += width * (s0 + s1) / 2
    return curve[0][1] - area


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("dims", [1, 3])
def test_it_is_the_area_of_clusters_merged_one_by_one(classes, dims):
    rng = np.random.default_rng(classes + 10 * dims)
    x_NxD = rng.normal(size=(30, dims))
    x_NxD[5] = x_NxD[6]
    code_N = np.r_[np.arange(classes), rng.integers(0, classes, 30 - classes)]
    y_NxK = np.eye(classes)[code_N]
    rogi, xd, *_ = score(x_NxD, np.array(list("abcde"))[code_N])
    scale = classes / (classes - 1)
    assert rogi.value == pytest.approx(literal(x_NxD, y_NxK, scale))
    assert xd.value == pytest.approx(literal(x_NxD, y_NxK, scale, xd=True))
    if classes == 2:  # twice the standard deviation of a number of 0 or 1, as published
        assert rogi.value == pytest.approx(literal(x_NxD, y_NxK[:, 1:], 4.0))


def test_one_label_has_no_roughness():
    x_NxD = np.random.default_rng(0).normal(size=(50, 3))
    for one in score(x_NxD, np.full(50, "a")):
        assert one.value is None and one.low is None and one.note == "one label"


def test_labels_by_position_are_smoother_than_shuffled_ones():
    rng = np.random.default_rng(0)
    x_NxD = rng.uniform(size=(400, 2))
    labels = np.array(list("abcd"))[(4 * x_NxD[:, 0]).astype(int)]
    found = {(s.name, s.of): s for s in score(x_NxD, labels)}
    mixed = {(s.name, s.of): s for s in score(x_NxD, rng.permutation(labels))}
    for name in roughness.NAMES:
        smooth, chance = found[name, ""], found[name, "shuffled labels"]
        assert smooth.high < chance.value and chance.low is None
        assert smooth.interval == "40 halves of cells" and smooth.low < smooth.value
        assert mixed[name, ""].value == pytest.approx(chance.value, abs=0.05)
    apart = score(x_NxD + 100 * np.eye(2)[(x_NxD[:, 0] > 0.5).astype(int)], labels)
    assert apart[1].value < found["rogi_xd", ""].value


def test_scale_and_place_of_the_embedding_do_not_matter():
    rng = np.random.default_rng(0)
    x_NxD, labels = rng.normal(size=(120, 4)), rng.choice(list("abc"), 120)
    one, two = score(x_NxD, labels), score(1e3 * x_NxD + 7, labels)
    assert [s.value for s in one] == pytest.approx([s.value for s in two], rel=1e-6)


@pytest.mark.slow
def test_intervals_are_as_wide_as_new_cells_vary():
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(16):
        x_NxD, labels = rng.normal(size=(100, 3)), rng.choice(list("abc"), 100)
        x_NxD += 2 * (np.unique(labels, return_inverse=True)[1][:, None] == np.arange(3))
        drawn.append(score(x_NxD, labels)[:2])
    for kind in zip(*drawn, strict=True):
        spread = np.std([s.value for s in kind])
        reach = np.mean([s.high - s.value for s in kind]) / 1.96
        assert 0.5 * spread < reach < 2 * spread


def test_many_cells_are_drawn_from_and_the_note_says_so():
    rng = np.random.default_rng(0)
    x_NxD, labels = rng.normal(size=(300, 3)), rng.choice(list("ab"), 300)
    labels[:50] = ""
    scores = score(x_NxD, labels, most=100, seed=3)
    assert all(s.n == 100 and "100 of 250 cells drawn at random, seed 3" in s.note for s in scores)
    assert scores == score(x_NxD, labels, most=100, seed=3)
    assert scores[0].value != score(x_NxD, labels, most=100, seed=4)[0].value
    x_NxD[:50] = 1e6  # unlabelled cells decide nothing
    assert scores == score(x_NxD, labels, most=100, seed=3)


def test_donors_are_halved_whole():
    rng = np.random.default_rng(0)
    x_NxD, labels = rng.normal(size=(120, 3)), rng.choice(list("ab"), 120)
    donors = np.array([f"d{number % 6}" for number in range(120)])
    halves, share, what = roughness._halves(donors, 120, rng)
    assert what == "40 halves of 6 donors" and share == 1
    assert all(len(set(donors[half])) == 3 and len(half) == 60 for half in halves)

    assert roughness._halves(np.array(list("abcde") * 4), 20, rng)[1] == 1.5
    assert roughness._halves(np.array(list("abcd") * 5), 20, rng)[2] == "40 halves of cells"
    assert score(x_NxD, labels, donors=donors)[0].interval == "40 halves of 6 donors"


def test_what_cannot_be_scored_says_why():
    labels = np.array(list("ab") * 10)
    for one in score(np.full((20, 3), 0.1), labels):
        assert one.value is None and "the same embedding" in one.note
    assert score(np.ones((20, 3)), np.full(20, ""))[0].note == "0 cells"
    with pytest.raises(ValueError, match="NaN or infinity"):
        score(np.full((20, 3), np.nan), labels)
    with pytest.raises(ValueError, match="one label per cell"):
        score(np.ones((20, 3)), labels[1:])


def test_real_types_are_smoother_than_shuffled_ones(real_data):
    cells = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")[::4]
    pca = baselines.fit_pca(cells.X.tocsr())
    x_NxD = baselines.apply_pca(pca, cells.X.tocsr())
    scores = {(s.name, s.of): s for s in score(x_NxD, cells.obs["cell_type"].to_numpy())}
    for name in roughness.NAMES:
        assert scores[name, ""].high < scores[name, "shuffled labels"].value
