"""Scores of predicted cell types: scikit-learn's on random cases, known answers, resamples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from scaling.evaluate.intervals import Bootstrap
from scaling.evaluate.label_scores import BINS, Predictions, score_labels


def by_name(scores) -> dict:
    """Scores by name, or by (name, class) where they are of a class."""
    return {(s.name, s.of) if s.of else s.name: s for s in scores}


def random_case(seed: int, n: int = 300, classes: int = 5):
    """True types, predictions with probabilities that agree with them in part, training types."""
    rng = np.random.default_rng(seed)
    names = np.array([f"type {c}" for c in range(classes)])
    shares = rng.dirichlet(np.ones(classes))
    true = rng.choice(classes, n, p=shares)
    p = rng.dirichlet(np.ones(classes), n) + 1.5 * rng.random((n, 1)) * np.eye(classes)[true]
    p /= p.sum(1, keepdims=True)
    predicted = Predictions(names[p.argmax(1)], names, p)
    return names[true], predicted, rng.choice(names, 400, p=shares)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(2, 7), st.integers(5, 120))
def test_values_are_those_of_scikit_learn(seed, classes, n):
    true, predicted, train = random_case(seed, n, classes)
    train = np.concatenate([train, predicted.classes])  # every class is in the reference
    found = by_name(score_labels(true, predicted, train_labels=train))
    present, named = np.unique(true), predicted.labels
    kept = {"labels": present, "zero_division": 0}
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(true, named))
    macro = metrics.f1_score(true, named, average="macro", **kept)
    assert found["macro_f1"].value == pytest.approx(macro)
    precision, recall, f1, cells = metrics.precision_recall_fscore_support(true, named, **kept)
    for c, name in enumerate(present):
        assert found["recall", name].value == pytest.approx(recall[c])
        assert found["recall", name].n == cells[c]
        assert found["f1", name].value == pytest.approx(f1[c])
        if (named == name).any():
            assert found["precision", name].value == pytest.approx(precision[c])
    for name in predicted.classes:
        difference = np.mean(named == name) - np.mean(true == name)
        assert found["share_difference", name].value == pytest.approx(difference)
        if name not in named:
            assert found["precision", name].value is None
    brier = metrics.brier_score_loss(
        true, predicted.probabilities, labels=predicted.classes, scale_by_half=False
    )
    assert found["brier"].value == pytest.approx(brier)


def test_intervals_are_those_of_scikit_learn_on_resampled_cells():
    true, predicted, train = random_case(3)
    donors = np.random.default_rng(4).integers(0, 12, len(true)).astype(str)
    found = by_name(score_labels(true, predicted, train_labels=train, donors=donors, seed=5))
    bootstrap, name = Bootstrap(len(true), donors, seed=5), "type 1"

    def macro_f1(weights_SxN):
        return np.array([
            metrics.f1_score(
                true, predicted.labels, labels=np.unique(true[w > 0]), average="macro",
                sample_weight=w, zero_division=0,
            ) for w in weights_SxN
        ])  # fmt: skip

    named = predicted.labels == name
    for score, expected in (
        (found["accuracy"], bootstrap.mean("", true == predicted.labels)),
        (found["macro_f1"], bootstrap.score("", macro_f1)),
        (found["recall", name], bootstrap.mean("", np.where(true == name, named, np.nan))),
        (found["precision", name], bootstrap.mean("", np.where(named, true == name, np.nan))),
        (found["share_difference", name], bootstrap.mean("", named * 1.0 - (true == name))),
    ):
        ends = (expected.value, expected.low, expected.high)
        assert (score.value, score.low, score.high) == pytest.approx(ends)
        assert score.interval == expected.interval == "12 donors"


def test_calibration_error_against_a_loop():
    true, predicted, train = random_case(6)
    found = by_name(score_labels(true, predicted, train_labels=train))
    sure, right = predicted.probabilities.max(1), predicted.labels == true
    error = 0.0
    for b in range(BINS):
        held = (sure > b / BINS) & (sure <= (b + 1) / BINS)
        if held.any():
            error += held.mean() * abs(sure[held].mean() - right[held].mean())
    assert found["calibration_error"].value == pytest.approx(error)
    assert found["overconfidence"].value == pytest.approx(sure.mean() - right.mean())
    assert str(BINS) in found["calibration_error"].note


def test_probabilities_that_come_true_as_often_as_they_say():
    rng = np.random.default_rng(9)
    p = rng.dirichlet(np.ones(3), 6_000)
    true = np.array(list("abc"))[(rng.random((6_000, 1)) > p.cumsum(1)).sum(1)]
    calm = Predictions(np.array(list("abc"))[p.argmax(1)], np.array(list("abc")), p)
    found = by_name(score_labels(true, calm, train_labels=np.array(list("abc"))))
    assert found["calibration_error"].value < 0.04
    assert found["overconfidence"].low <= 0 <= found["overconfidence"].high
    sharp = p**4 / (p**4).sum(1, keepdims=True)
    loud = by_name(
        score_labels(
            true, Predictions(calm.labels, calm.classes, sharp), train_labels=np.array(list("abc"))
        )
    )
    assert loud["overconfidence"].low > 0.1
    assert loud["calibration_error"].value > 0.1
    assert loud["brier"].value > found["brier"].high


def test_perfect_predictions():
    true = np.repeat(list("abc"), [50, 30, 1])
    sure = Predictions(true, np.array(list("abc")), np.eye(3)[np.repeat([0, 1, 2], [50, 30, 1])])
    found = by_name(score_labels(true, sure, train_labels=true, pretrained_labels=["a", "b", "c"]))
    for name in ("accuracy", "macro_f1", "in_reference_accuracy", "in_pretraining_accuracy"):
        assert (found[name].value, found[name].low, found[name].high) == (1.0, 1.0, 1.0)
    for name in ("calibration_error", "overconfidence", "brier"):
        assert found[name].value == pytest.approx(0) and found[name].high == pytest.approx(0)
    for name in "abc":
        assert found["recall", name].value == found["precision", name].value == 1.0
        assert found["f1", name].value == 1.0
        assert found["share_difference", name].value == found["share_difference", name].high == 0
    for name in ("absent_from_reference_accuracy", "absent_from_pretraining_recall"):
        assert found[name].value is None and found[name].n == 0
        assert found[name].note.startswith("every type of the test cells is in")
    # One cell: absent from a third of the resamples, so it has no interval.
    assert found["recall", "c"].n == 1 and found["recall", "c"].low is None
    assert found["recall", "b"].n == 30 and found["recall", "b"].interval == "cells"
    assert "1 of few cells (c) miss in resamples" in found["macro_f1"].note


def test_a_single_class():
    found = by_name(
        score_labels(np.full(9, "a"), Predictions(np.full(9, "a")), train_labels=np.full(4, "a"))
    )
    assert found["accuracy"].value == found["macro_f1"].value == found["f1", "a"].value == 1.0
    assert found["rare_recall"].value is None and "0 of 1 classes" in found["rare_recall"].note
    assert found["brier"].value is None and "no probabilities" in found["brier"].note


def test_types_that_the_reference_or_pretraining_lack():
    true = np.array(["a"] * 6 + ["b"] * 3 + ["new"] * 2 + ["other"])
    named = np.array(["a"] * 5 + ["b"] * 2 + ["a"] * 2 + ["b", "a"] + ["a"])
    sure = np.repeat([0.75, 0.9], [9, 3])[:, None]
    p = np.where(named[:, None] == np.array(["a", "b"]), sure, 1 - sure)
    found = by_name(
        score_labels(
            true, Predictions(named, np.array(["a", "b"]), p), train_labels=["a", "b", "z"],
            pretrained_labels=["a", "", "new"],
        )
    )  # fmt: skip
    absent = found["absent_from_reference_accuracy"]
    assert (absent.value, absent.n) == (0.0, 3)
    assert absent.note == "3 of 12 test cells, 2 types: new, other"
    assert found["absent_from_reference_confidence"].value == pytest.approx(0.9)
    assert found["absent_from_reference_confidence"].n == 3
    known = found["in_reference_accuracy"]
    assert (known.value, known.n) == (pytest.approx(6 / 9), 9)
    assert "over 4 classes, 2 of them not in the reference" in found["macro_f1"].note
    # Pretraining had no b (one of three right) and no other (none right).
    lacking = found["absent_from_pretraining_accuracy"]
    assert (lacking.value, lacking.n) == (pytest.approx(1 / 4), 4)
    assert found["absent_from_pretraining_recall"].value == pytest.approx((1 / 3 + 0) / 2)
    assert "2 types: b, other; 1 of these types not in the reference" in lacking.note
    assert "1 of 3 pretraining cells have no label" in lacking.note
    assert found["in_pretraining_accuracy"].value == pytest.approx(5 / 8)
    assert (found["recall", "new"].value, found["recall", "new"].n) == (0.0, 2)
    few = "not in the reference; too few cells for an interval"
    assert found["recall", "new"].note == few
    assert found["recall", "z"].value is None and found["recall", "z"].note == "no test cell"
    assert found["precision", "z"].note == "never named"
    assert found["share_difference", "z"].value == 0.0
    # By hand: 2 * 0.25² where right, 2 * 0.75² where wrong, 0.9² + 0.1² + 1 where absent.
    assert found["brier"].value == pytest.approx((6 * 0.125 + 3 * 1.125 + 3 * 1.82) / 12)


def test_rare_classes_are_those_under_one_percent_of_all_labelled_cells():
    train = np.repeat(["a", "rare", "brink", "test only", "train only"], [905, 4, 5, 0, 2])
    true = np.repeat(["a", "rare", "brink", "test only"], [75, 3, 5, 1])  # 1,000 together
    named = true.copy()
    named[np.flatnonzero(true == "rare")[:2]] = "a"
    score = by_name(score_labels(true, Predictions(named), train_labels=train))["rare_recall"]
    assert score.value == pytest.approx((1 / 3 + 1) / 2) and score.n == 4
    assert "3 of 5 classes under 1% of 1000 labelled cells, 2 with test cells" in score.note
    assert score.note.endswith("rare, test only, train only")


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_give_chance_in_every_score(seed):
    """Chance: recall is the share of cells given that name, precision the true share."""
    true, predicted, train = random_case(seed, n=3_000)
    shuffled = np.random.default_rng(seed).permutation(true)
    found = by_name(score_labels(shuffled, predicted, train_labels=train))
    given = {name: np.mean(predicted.labels == name) for name in predicted.classes}
    share = {name: np.mean(true == name) for name in predicted.classes}
    chance = {"accuracy": sum(given[c] * share[c] for c in given)}
    f1 = {c: 2 * given[c] * share[c] / (given[c] + share[c]) for c in given}
    chance["macro_f1"] = np.mean(list(f1.values()))
    chance |= {("recall", c): given[c] for c in given}
    chance |= {("precision", c): share[c] for c in given}
    chance |= {("f1", c): f1[c] for c in given}
    held = [found[name].low <= value <= found[name].high for name, value in chance.items()]
    assert found["accuracy"].low <= chance["accuracy"] <= found["accuracy"].high
    assert np.mean(held) > 0.8
    assert by_name(score_labels(true, predicted, train_labels=train))["accuracy"].low > 0.6


def test_every_score_names_its_split_and_prefix_and_how_it_was_made():
    true, predicted, train = random_case(8, n=50)
    made = Predictions(predicted.labels, predicted.classes, predicted.probabilities, "C 0.1 chosen")
    scores = score_labels(true, made, train_labels=train, split="by donor", prefix="knn_")
    assert all(s.split == "by donor" and s.name.startswith("knn_") for s in scores)
    assert all(s.note.endswith("C 0.1 chosen") for s in scores)
    assert len({(s.name, s.of) for s in scores}) == len(scores)
    assert all(s.note for s in scores if s.value is None)


def test_without_test_cells_the_scores_say_so():
    scores = score_labels([], Predictions(np.empty(0, str)), train_labels=["a", "b"], split="x")
    assert [s.name for s in scores] == ["accuracy", "macro_f1"]
    assert all((s.value, s.n, s.note) == (None, 0, "no test cell") for s in scores)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (["a", "b"], Predictions(["a"]), "one of each per test cell"),
        (["a", ""], Predictions(["a", "a"]), "1 test cells have no label"),
        (["a"], Predictions(["a"], ["a", "b"], [[1.0]]), "cells x classes"),
        (["a"], Predictions(["a"], ["a", "b"], [[0.7, 0.7]]), "add up to 1"),
        (["a"], Predictions(["a"], ["a", "b"], [[np.nan, 0.7]]), "add up to 1"),
        (["a"], Predictions(["c"], ["a", "b"], [[0.5, 0.5]]), "'c'.* none of the classes"),
    ],
)
def test_bad_input_is_named(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        score_labels(true, predicted, train_labels=["a", "b"])
