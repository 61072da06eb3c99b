"""Bootstrap intervals of scores: their coverage, their unit, and what has none."""

import numpy as np
import pytest

from scaling.evaluate.intervals import Bootstrap


def test_means_agree_with_the_textbook():
    values = np.random.default_rng(0).normal(3.0, 2.0, 4_000)
    score = Bootstrap(4_000).mean("mean", values)
    error = 1.96 * values.std() / np.sqrt(4_000)
    assert score.value == pytest.approx(values.mean()) and score.n == 4_000
    assert score.low == pytest.approx(values.mean() - error, abs=error / 8)
    assert score.high == pytest.approx(values.mean() + error, abs=error / 8)


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        score = Bootstrap(100, seed=seed).mean("mean", rng.normal(size=100))
        held += score.low <= 0 <= score.high
    assert 0.90 < held / 300 < 0.98


def test_donors_are_drawn_whole():
    """Cells that repeat their donor's value: the interval is that of twenty values."""
    of_donors = np.random.default_rng(2).normal(size=20)
    donors = np.repeat(np.arange(20), 50)
    names = np.char.zfill(donors.astype(str), 2)
    by_donor = Bootstrap(1_000, names).mean("mean", of_donors[donors])
    alone = Bootstrap(20).mean("mean", of_donors)
    assert by_donor.interval == "20 donors" and alone.interval == "cells"
    assert (by_donor.low, by_donor.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("donors", [None, ["a", "b", "c", "d"] * 25, [""] + list("abcdefghi") * 11])
def test_few_or_unknown_donors_leave_cells_to_be_drawn(donors):
    assert Bootstrap(100, donors).mean("mean", np.arange(100)).interval == "cells"


def test_cells_that_do_not_count():
    values = np.tile([1.0, np.nan, 3.0, np.nan], 5)
    score = Bootstrap(20).mean("mean", values)
    assert (score.value, score.n) == (2.0, 10) and 1.0 <= score.low <= score.high <= 3.0


def test_what_has_no_value_or_no_interval_says_so():
    nothing = Bootstrap(3).mean("mean", np.full(3, np.nan), note="no label")
    assert (nothing.value, nothing.low, nothing.n, nothing.note) == (None, None, 0, "no label")
    assert Bootstrap(0).mean("mean", []).value is None
    # A value of which most resamples have none: it needs each of ten cells.
    rare = Bootstrap(10, units="genes").score(
        "all", lambda w_SxN: np.where((w_SxN > 0).all(1), 1.0, np.nan), note="rare"
    )
    assert (rare.value, rare.low, rare.interval) == (1.0, None, "")
    assert rare.note == "rare; too few genes for an interval"


def test_an_interval_that_would_not_hold_its_value_is_none():
    """Shares of distinct cells: all of them are 1, those of a resample about 0.63."""
    score = Bootstrap(200).score("distinct", lambda w_SxN: (w_SxN > 0).mean(1), note="seen")
    assert (score.value, score.low, score.high, score.interval) == (1.0, None, None, "")
    low, high = (float(end) for end in score.note.split(" it, to ")[1].split(" to "))
    assert score.note.startswith("seen; no interval: ") and 0.5 < low < 0.63 < high < 0.75
    # Rounding of the last digit is no reason.
    of_ones = Bootstrap(200).score("one", lambda w_SxN: 1 - 1e-15 * (w_SxN.max(1) > 1))
    assert of_ones.interval == "cells" and of_ones.low == pytest.approx(1.0)


def test_scores_see_the_same_resamples_whatever_their_number(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = Bootstrap(50, seed=4).mean("mean", values)
    assert Bootstrap(50, seed=4).mean("mean", -values).low == pytest.approx(-whole.high)
    monkeypatch.setattr("scaling.evaluate.intervals.LARGEST", 170)
    cut = Bootstrap(50, seed=4).mean("mean", values)
    assert (cut.low, cut.high) == pytest.approx((whole.low, whole.high))
    assert Bootstrap(50, seed=5).mean("mean", values).low != pytest.approx(whole.low)


def test_donors_of_other_cells_are_refused():
    with pytest.raises(ValueError, match="one per cell"):
        Bootstrap(3, ["a", "b"])
