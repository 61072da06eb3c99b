"""Noise and thinning: their distributions, who is changed, and scores against their definitions."""

import dataclasses

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import sparse
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score

from scaling.corpus import ranks, subsets
from scaling.evaluate import baselines, noise
from scaling.evaluate.intervals import NotScoredError
from scaling.evaluate.noisy_counts import Cells, add_noise, thin


def cells(n: int = 200, genes: int = 40, seed: int = 0) -> Cells:
    """Three classes of cells, each with genes of its own; the totals exceed the sums by 7."""
    rng = np.random.default_rng(seed)
    class_N = rng.integers(0, 3, n)
    mean_CxG = np.full((3, genes), 0.3)
    for c in range(3):
        mean_CxG[c, 4 * c : 4 * c + 4] = 1.2
    counts = sparse.csr_matrix(rng.poisson(mean_CxG[class_N]).astype(np.int32))
    total = np.asarray(counts.sum(1)).ravel() + 7
    names = np.array(["a", "b", "c"])[class_N]
    return Cells(counts, total, names, np.array([f"cell {seed} {i}" for i in range(n)]))


def by_marker(counts_NxG, total_N) -> np.ndarray:
    """Names a cell by the class whose four genes hold most counts."""
    return np.array(["a", "b", "c"])[
        np.stack([counts_NxG[:, 4 * c : 4 * c + 4].sum(1).A1 for c in range(3)], 1).argmax(1)
    ]


def rows(scores, name: str) -> dict:
    return {score.of: score for score in scores if score.name == name}


def test_noise_has_its_spread_and_no_negatives():
    part = cells(300, genes=200)
    counts = part.counts + 20 * sparse.csr_matrix(np.ones(part.counts.shape))  # nothing is cut
    lifted = dataclasses.replace(part, counts=sparse.csr_matrix(counts), total=counts.sum(1).A1)
    noised_NxG, total_N = add_noise(lifted, sd=2.0, seed=0)
    noise_NxG = noised_NxG.toarray() - counts.toarray()
    assert noise_NxG.std() == pytest.approx(2.0, abs=0.02)
    assert noise_NxG.mean() == pytest.approx(0.0, abs=0.04)
    assert abs(np.corrcoef(noise_NxG[:, 0], noise_NxG[:, 1])[0, 1]) < 0.2
    assert abs(np.corrcoef(noise_NxG[0], noise_NxG[1])[0, 1]) < 0.25
    assert total_N == pytest.approx(noised_NxG.toarray().sum(1))
    plain, _ = add_noise(part, sd=2.0, seed=0)
    assert plain.data.min() > 0
    expected = np.maximum(part.counts.toarray() + noise_NxG, 0)
    np.testing.assert_allclose(plain.toarray(), expected, atol=3e-6)
    of_zeros = plain.toarray()[part.counts.toarray() == 0]
    assert (of_zeros > 0).mean() == pytest.approx(0.5, abs=0.01)  # zeros are noised too


def test_totals_keep_what_lies_outside_and_never_fall_below_the_sum():
    part = cells(60)
    noised_NxG, total_N = add_noise(part, sd=1.0, seed=0)
    outside_N = total_N - noised_NxG.toarray().sum(1)
    assert (outside_N == 7).all()  # exactly: sums do not round
    shuffled = noised_NxG[:, np.random.default_rng(0).permutation(40)]
    baselines.log_normalise(sparse.csr_matrix(shuffled), total_N - 7)


def test_noised_cells_can_be_ranked():
    part, medians_G = cells(30), np.random.default_rng(1).gamma(2.0, 1.0, 40)
    noised_NxG, total_N = add_noise(part, sd=1.0, seed=0)
    tokens, lengths = ranks.rank_tokens(noised_NxG, total_N, medians_G, 4)
    expected = [
        np.argsort(-row / medians_G, kind="stable")[: (row > 0).sum()] + 4
        for row in noised_NxG.toarray()
    ]
    assert (tokens == np.concatenate(expected)).all()
    assert (lengths == [len(row) for row in expected]).all()


@pytest.mark.parametrize("change", [
    lambda part, seed: add_noise(part, sd=1.0, seed=seed)[0],
    lambda part, seed: thin(part, kept=0.5, seed=seed)[0],
])  # fmt: skip
def test_a_draw_depends_on_seed_and_id_alone(change):
    part = cells(50)
    all_NxG = change(part, 0).toarray()
    some = np.array([7, 3, 40])
    assert (change(part[some], 0).toarray() == all_NxG[some]).all()
    assert (change(part, 1).toarray() != all_NxG).any(1).mean() > 0.9
    renamed = dataclasses.replace(part, ids=np.char.add(part.ids, " x"))
    assert (change(renamed, 0).toarray() != all_NxG).any(1).mean() > 0.9


def test_thinning_is_binomial():
    part = cells(4_000)
    for kept in (0.5, 0.05):
        thinned_NxG, total_N = thin(part, kept=kept, seed=0)
        before, after = part.counts.toarray(), thinned_NxG.toarray()
        assert (after <= before).all() and after.dtype == np.int64
        assert thinned_NxG.nnz == (after > 0).sum()
        mean, error = kept * before.sum(), np.sqrt(before.sum() * kept * (1 - kept))
        assert abs(after.sum() - mean) < 4 * error
        large = before >= 3
        expected = (before[large] * kept * (1 - kept)).mean()
        assert ((after - kept * before)[large] ** 2).mean() == pytest.approx(expected, rel=0.05)
        outside_N = total_N - after.sum(1)
        assert outside_N.min() >= 0 and outside_N.max() <= 7
        assert outside_N.mean() == pytest.approx(7 * kept, abs=0.1)
    assert (thin(part, kept=1.0, seed=0)[0] != part.counts).nnz == 0
    assert part.counts.sum() == before.sum()  # the input is left as it was


def test_the_share_noised_is_exact():
    part = cells(203)

    def classify(counts_NxG, total_N):
        whole = counts_NxG.data == np.round(counts_NxG.data)
        fractional = np.add.reduceat(~whole, counts_NxG.indptr[:-1]) > 0
        return np.where(fractional, "noised", "clean")

    for only in ("", "b"):
        of = part.labels == only if only else np.ones(203, bool)
        for share in (0.0, 0.2, 0.4, 1.0):
            found = noise.gaussian(classify, part, shares=(share, 0.4), only=only)
            excess = rows(found, "predicted_minus_true")
            name = f"{100 * share:g} % of {only or 'cells'} noised, noised"
            assert excess[name].value * 203 == pytest.approx(round(share * of.sum()))


def test_cells_noised_at_a_small_share_are_noised_at_a_larger():
    part = cells(40)
    outside_N = np.arange(100, 140)  # tells cells apart whatever is noised
    names = outside_N.astype(str)
    part = dataclasses.replace(part, total=part.counts.sum(1).A1 + outside_N, labels=names)

    def classify(counts_NxG, total_N):
        noised_N = (counts_NxG.toarray() % 1 > 0).any(1)
        found = (total_N - counts_NxG.toarray().sum(1)).astype(int).astype(str)
        return np.where(noised_N, "", found)

    found = rows(noise.gaussian(classify, part, shares=(0.2, 0.4, 0.8)), "predicted_minus_true")
    noised = {
        share: {name for name in names if found[f"{share} % of cells noised, {name}"].value < 0}
        for share in (20, 40, 80)
    }
    assert [len(noised[share]) for share in (20, 40, 80)] == [8, 16, 32]
    assert noised[20] < noised[40] < noised[80]
    assert noised[20] == set(names[subsets.order(part.ids, 0)[:8]])


def test_scores_are_scikit_learns_on_cells_changed_by_hand():
    part, classes = cells(250), ["a", "b", "c"]
    found = noise.gaussian(by_marker, part, shares=(0.0, 0.4, 1.0), seed=3)
    sd = np.median(part.counts.data)
    noised = by_marker(*add_noise(part, sd=sd, seed=3))
    clean = by_marker(part.counts, part.total)
    accuracy, f1 = rows(found, "accuracy"), rows(found, "macro_f1")
    said = {"0 % of cells noised": clean, "100 % of cells noised": noised}
    for of, names in said.items():
        assert accuracy[of].value == pytest.approx(accuracy_score(part.labels, names))
        macro = f1_score(part.labels, names, average="macro", labels=classes)
        assert f1[of].value == pytest.approx(macro)
        for name in classes:
            excess = rows(found, "predicted_minus_true")[f"{of}, {name}"]
            expected = (names == name).mean() - (part.labels == name).mean()
            assert excess.value == pytest.approx(expected)
    assert rows(found, "accuracy_drop")["100 % of cells noised"].value == pytest.approx(
        accuracy_score(part.labels, clean) - accuracy_score(part.labels, noised)
    )
    assert rows(found, "macro_f1_drop")["100 % of cells noised"].value == pytest.approx(
        f1["0 % of cells noised"].value - f1["100 % of cells noised"].value
    )
    values = [accuracy[of].value for of in accuracy]
    assert values[0] > values[1] > values[2] and accuracy["40 % of cells noised"].n == 250
    drop = rows(found, "accuracy_drop")["100 % of cells noised"]
    wide = sum(accuracy[of].high - accuracy[of].low for of in said)
    assert drop.low < drop.value < drop.high and drop.high - drop.low < wide  # paired


def test_no_change_is_the_clean_score_exactly():
    part = cells(120)
    for scores in (noise.gaussian(by_marker, part, shares=(0.0,)),
                   noise.thinning(by_marker, part, kept=(1.0,))):  # fmt: skip
        found = {score.name: score for score in scores}
        assert found["accuracy"].value == (by_marker(part.counts, part.total) == part.labels).mean()
        for name in ("accuracy_drop", "macro_f1_drop"):
            assert (found[name].value, found[name].low, found[name].high) == (0.0, 0.0, 0.0)


def test_thinning_scores_cells_thinned_by_hand():
    part = cells(150)
    found = noise.thinning(by_marker, part, kept=(1.0, 0.05), seed=2, split="by hand")
    names = by_marker(*thin(part, kept=0.05, seed=2))
    row = rows(found, "accuracy")["5 % of counts kept"]
    assert row.value == pytest.approx((names == part.labels).mean()) and row.split == "by hand"
    assert row.value < rows(found, "accuracy")["100 % of counts kept"].value


def test_macro_f1_of_resamples_is_that_of_repeated_cells():
    rng = np.random.default_rng(0)
    truth, names = rng.choice(["a", "b", "c"], 30), rng.choice(["a", "b", "d"], 30)
    weights_SxN = rng.integers(0, 3, (20, 30)).astype(float)
    weights_SxN[0, truth == "c"] = 0  # a resample without a class
    found = noise._macro_f1(truth, names)(weights_SxN)
    for weights_N, value in zip(weights_SxN, found, strict=True):
        t, p = (np.repeat(x, weights_N.astype(int)) for x in (truth, names))
        expected = f1_score(t, p, labels=np.unique(t), average="macro", zero_division=0)
        assert value == pytest.approx(expected)


def test_unlabelled_cells_count_nowhere():
    part = cells(100)
    labels = part.labels.copy()
    labels[::4] = ""
    blank = dataclasses.replace(part, labels=labels)
    assert rows(noise.gaussian(by_marker, blank), "accuracy")["20 % of cells noised"].n == 75
    alone = noise.gaussian(by_marker, part[np.flatnonzero(labels != "")])
    assert noise.gaussian(by_marker, blank) == alone


def test_probe_is_fitted_on_the_representation_of_clean_cells():
    part, other = cells(150), cells(80, seed=1)

    def represent(counts_NxG, total_N):
        x_NxD = counts_NxG.toarray() / total_N[:, None]
        return np.where(counts_NxG.sum(1).A1[:, None] > 0, x_NxD, np.nan).astype(np.float32)

    classify = noise.fit_probe(represent, part)
    named = classify(other.counts, other.total)
    assert (named == other.labels).mean() > 0.8
    empty = other.counts.tolil()
    empty[3] = 0
    named = classify(sparse.csr_matrix(empty), other.total)
    assert named[3] == "" and (named != "").sum() == 79
    given = noise.fit_probe(represent, part, DummyClassifier(strategy="constant", constant="c"))
    assert (given(other.counts, other.total) == "c").all()
    with pytest.raises(ValueError, match="1 class"):
        noise.fit_probe(represent, dataclasses.replace(part, labels=np.full(150, "a")))
    with pytest.raises(NotScoredError, match="did not converge"):
        noise.fit_probe(represent, part, LogisticRegression(max_iter=1))


def test_refusals_say_what_is_wrong():
    part = cells(20)
    with pytest.raises(ValueError, match="from 0 to 1"):
        noise.gaussian(by_marker, part, shares=(0.2, 1.2))
    with pytest.raises(ValueError, match="from 0 to 1"):
        noise.thinning(by_marker, part, kept=())
    with pytest.raises(ValueError, match="no test cell is 'd'"):
        noise.gaussian(by_marker, part, only="d")
    with pytest.raises(ValueError, match="none of 20 test cells has a label"):
        noise.thinning(by_marker, dataclasses.replace(part, labels=np.full(20, "")))


def test_picture_replaces_the_old_one_only_when_finished(tmp_path):
    part, path = cells(60), tmp_path / "noise.png"
    scores, thinned = noise.gaussian(by_marker, part), noise.thinning(by_marker, part)
    for found in (scores, thinned):
        noise.draw({"markers": found, "again": found}, path, title="Noise")
        assert path.read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1
    before = path.read_bytes()
    for wrong in ({}, {"a": scores, "b": thinned}, {str(i): scores for i in range(9)}):
        with pytest.raises(ValueError, match="give those of one question"):
            noise.draw(wrong, path, title="Noise")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["pca", "untrained (input projection)"])
def test_the_key_of_eight_lines_is_whole(name, tmp_path):
    found = noise.gaussian(by_marker, cells(60))
    lines = {name + " " * n: found for n in range(8)}
    noise.draw(lines, tmp_path / "a.png", title="Noise", band="intervals of all seeds")
    key = plt.imread(tmp_path / "a.png")[-60:]  # the last line of it
    assert (key[:, :4] == 1).all() and (key[:, -4:] == 1).all() and (key != 1).any()


@pytest.mark.slow
def test_noise_lowers_the_scores_of_real_cells(real_data):
    found = anndata.read_h5ad(real_data / "kang_ifnb_2800.h5ad")
    counts = sparse.csr_matrix(found.X)
    part = Cells(counts, counts.sum(1).A1, found.obs["cell_type"].to_numpy(str),
                 found.obs_names.to_numpy(str))  # fmt: skip
    control = found.obs["batch"].to_numpy() == "CTRL"
    train, test = part[np.flatnonzero(control)], part[np.flatnonzero(~control)]
    pca = baselines.fit_pca(train.counts, train.total)
    classify = noise.fit_probe(lambda c, n: baselines.apply_pca(pca, c, n), train)
    drops = rows(noise.gaussian(classify, test, shares=(0.0, 0.4, 0.8)), "accuracy_drop")
    assert [round(drop.value, 2) for drop in drops.values()] == [0.0, 0.04, 0.06]
    assert drops["40 % of cells noised"].low > 0
    mixed = np.random.default_rng(0).permutation(test.labels)
    chance = noise.gaussian(classify, dataclasses.replace(test, labels=mixed), shares=(0.0,))
    assert rows(chance, "accuracy")["0 % of cells noised"].high < 0.3
