"""Simulated curves with known truth in; recovered parameters, intervals, flags and refusals."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from scaling.analyse.fits import fit_curve, fit_table
from scaling.analyse.forms import EXPONENTS, columns_of
from scaling.analyse.refits import refit
from scaling.analyse.search import HUBER_DELTA
from scaling.analyse.trends import difference, saturation_point, trend

SIZES = np.geomspace(100, 100_000, 6)
X = np.repeat(SIZES, 3)


def noise(sd: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, sd, len(X))


def rows_of(x, y, **columns) -> pd.DataFrame:
    table = pd.DataFrame({"cells": x, "value": y})
    seed = table.groupby("cells").cumcount()
    fixed = {
        "model": "mlm", "kind": "pretrained", "tokens": table["cells"] * 700, "subset_seed": seed,
        "exposures": table["cells"] * 8, "init_seed": seed, "mask_seed": 0, "dataset": "kang",
        "task": "cell_types", "score": "knn_accuracy", "note": "", "positions": None,
        "read_from": None, "converged": True,
    }  # fmt: skip
    return table.assign(**(fixed | columns))


@pytest.mark.parametrize(
    ("form", "scale", "curve", "truth"),
    [
        ("saturating", "raw", lambda x: 0.5 - (x / 3) ** -0.4, {"S_inf": 0.5, "D0": 3, "s": 0.4}),
        ("power", "raw", lambda x: 0.1 + 2 * x**-0.3, {"E": 0.1, "A": 2, "alpha": 0.3}),
        ("power", "log", lambda x: 3 + 20 * x**-0.4, {"E": 3, "A": 20, "alpha": 0.4}),
        ("constant", "raw", lambda x: 0.3 + 0 * x, {"E": 0.3}),
    ],
)
def test_exact_curves_are_chosen_and_recovered(form, scale, curve, truth):
    fit = fit_curve(X, curve(X), scale=scale)
    assert fit["form"] == form
    assert fit["parameters"] == pytest.approx(truth, rel=1e-4)
    assert fit["left_out_error"] == pytest.approx(0, abs=1e-6)
    assert list(fit["intervals"]) == list(truth)


@pytest.mark.parametrize("scale", ["raw", "log"])
def test_a_constant_that_the_scores_leave_is_flagged(scale):
    def flags(x, y):
        fit = fit_curve(x, y, scale=scale)
        assert fit["form"] == "constant"
        return " ".join(fit["flags"])

    falling = 2 + 5 * SIZES**-0.4 + noise(0.05)[:6]  # of one seed: AICc has too few points
    assert "not flat" in flags(SIZES, falling)
    assert "not flat" not in flags(X, 2 + noise(0.02))
    assert "not flat" not in flags(X, np.full(len(X), 2.0))
    if scale == "log":  # no form of losses rises
        rising = flags(X, 2 + 0.1 * np.log(X) + noise(0.02))
        assert "not flat" in rising and "poor fit" in rising


def test_noisy_curve_lies_within_its_intervals_and_band():
    fit = fit_curve(X, 0.5 - (X / 3) ** -0.4 + noise(0.01, 3))
    for name, truth in {"S_inf": 0.5, "D0": 3, "s": 0.4}.items():
        low, high = fit["intervals"][name]
        assert low < truth < high and high - low < 2 * truth
    band = {name: np.array(values) for name, values in fit["band"].items()}
    assert np.all(band["low"] <= band["mid"]) and np.all(band["mid"] <= band["high"])
    assert band["mid"] == pytest.approx(0.5 - (band["x"] / 3) ** -0.4, abs=0.02)
    assert fit["flags"] == []


def test_least_squares_agree_with_scipy_curve_fit():
    y = 0.5 - (X / 3) ** -0.4 + noise(0.02, 1)
    ours = fit_curve(X, y, form="saturating", draws=2)["parameters"]
    theirs, _ = optimize.curve_fit(lambda x, top, d, s: top - (x / d) ** -s, X, y, (0.5, 3, 0.4))
    assert [ours["S_inf"], ours["D0"], ours["s"]] == pytest.approx(theirs, rel=1e-4)


def test_floor_of_a_falling_score_stays_non_negative_as_in_nnls():
    y = np.maximum(0.4 * X**-0.2 - 0.02 + noise(0.002), 0)
    ours = fit_curve(X, y, form="power", draws=2)
    best = min(
        (optimize.nnls(np.column_stack([np.ones_like(X), X**-a]), y)[1], a)
        for a in np.geomspace(*EXPONENTS, 2000)
    )
    assert ours["parameters"]["E"] == 0 and "E on its bound 0: no floor in sight" in ours["flags"]
    assert ours["parameters"]["alpha"] == pytest.approx(best[1], rel=3e-3)


@pytest.mark.parametrize("seed", range(4))
def test_huber_fit_of_losses_is_as_low_as_many_scipy_starts(seed):
    log_y = np.log(2 + 15 * X**-0.35) + noise(0.02, seed)

    def objective(p):
        residual = np.abs(log_y - np.log(np.exp(p[0]) + np.exp(p[1]) * (X / 3000) ** -p[2]))
        inside = np.minimum(residual, HUBER_DELTA)
        return np.sum(inside * (residual - inside / 2))

    theirs = min(
        optimize.minimize(objective, (e, a, alpha), method="Nelder-Mead",
                          options={"maxiter": 3000, "xatol": 1e-9, "fatol": 1e-13}).fun
        for e in (0.3, 1.0) for a in (-1.0, 0.5) for alpha in (0.2, 0.6)
    )  # fmt: skip
    named = fit_curve(X, np.exp(log_y), form="power", scale="log", draws=2)["parameters"]
    ours = objective((np.log(named["E"]), np.log(named["A"] * 3000 ** -named["alpha"]),
                      named["alpha"]))  # fmt: skip
    assert ours <= theirs * (1 + 1e-6)


def test_bootstrap_refits_of_losses_equal_refits_one_by_one():
    truth = 3 + 20 * X**-0.4
    targets = np.log(truth) + np.stack([noise(0.02, seed) for seed in range(12)])
    columns, [centre] = columns_of("power", X)
    near = np.array([3.0, 20 * centre**-0.4, np.log(0.4)])
    together, losses = refit("power", "log", columns, targets, near)
    alone = [refit("power", "log", columns, one[None]) for one in targets]
    assert together == pytest.approx(np.concatenate([point for point, _ in alone]), rel=0.02)
    assert losses == pytest.approx(np.concatenate([loss for _, loss in alone]), rel=5e-3)


def test_huber_fit_withstands_one_diverged_run():
    y = 3 + 20 * X**-0.4
    y[4] *= 2
    fit = fit_curve(X, y, form="power", scale="log", draws=2)
    assert fit["parameters"] == pytest.approx({"E": 3, "A": 20, "alpha": 0.4}, rel=1e-2)


def test_aicc_is_the_gaussian_one_counting_the_variance():
    y = 0.3 + noise(0.01)
    n, k = len(y), 2
    plain = n * np.log(np.mean((y - y.mean()) ** 2)) + 2 * k
    assert fit_curve(X, y, form="constant")["aicc"] == pytest.approx(
        plain + 2 * k * (k + 1) / (n - k - 1)
    )


def test_flat_scores_mostly_choose_the_constant():
    chosen = [fit_curve(X, 0.3 + noise(0.01, s), draws=2)["form"] for s in range(40)]
    assert chosen.count("constant") >= 32


def test_left_out_error_measures_the_miss_at_the_largest_size():
    y = np.where(X == X.max(), 0.9, 0.3)
    fit = fit_curve(X, y, form="constant")
    assert fit["left_out_error"] == pytest.approx(0.6)


def test_straight_line_in_log_size_is_flagged_as_without_plateau():
    fit = fit_curve(X, 0.1 * np.log10(X) + noise(0.002))
    assert any(flag.startswith("s on its lower bound") for flag in fit["flags"])
    assert any("not identified" in flag for flag in fit["flags"])


def test_misfit_beyond_the_seeds_is_flagged():
    wave = 0.3 + 0.1 * (-1.0) ** np.arange(6).repeat(3) + noise(0.001)
    assert any(flag.startswith("poor fit") for flag in fit_curve(X, wave)["flags"])


def test_single_seed_has_intervals_over_points_and_says_so():
    fit = fit_curve(SIZES, 0.5 - (SIZES / 3) ** -0.4 + noise(0.003)[:6], form="saturating")
    assert "single seed: intervals over points" in fit["flags"]
    low, high = fit["intervals"]["S_inf"]
    assert low < fit["parameters"]["S_inf"] < high


def test_missing_values_are_dropped_and_counted():
    y = 0.3 + noise(0.01)
    y[[0, 5]] = np.nan
    fit = fit_curve(X, y)
    assert fit["dropped"] == 2 and fit["points"] == 16
    assert "2 rows without a value dropped" in fit["flags"]


def test_three_sizes_give_no_curve_but_a_reason():
    fit = fit_curve(X[:9], 0.3 + noise(0.01)[:9])
    assert fit["form"] is None and fit["band"] is None and fit["parameters"] == {}
    assert fit["reason"] == "3 distinct sizes with a value; a curve needs 4"


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_losses_without_logarithm_are_refused(bad):
    y = 3 + 20 * X**-0.4
    y[3] = bad
    with pytest.raises(ValueError, match="1 of 18 losses are zero or negative"):
        fit_curve(X, y, scale="log")


def test_sizes_must_be_positive_and_match():
    with pytest.raises(ValueError, match="positive number"):
        fit_curve([0, 1, 2, 3], [1, 1, 1, 1])
    with pytest.raises(ValueError, match="one length"):
        fit_curve([1, 2, 3], [1, 1])


def test_table_gives_one_serialisable_fit_per_key():
    losses = rows_of(X, 3 + 20 * X**-0.4, task="masked_genes", score="loss", positions="mask",
                     read_from="P")  # fmt: skip
    table = pd.concat([losses, rows_of(X, 0.3 + noise(0.01), converged=X < 1e5),
                       rows_of([0], [0.1], model="untrained", kind="baseline"),
                       rows_of(X, 0.2 + 0 * X, model="copy_input", kind="floor")])  # fmt: skip
    fits = json.loads(json.dumps(fit_table(table), allow_nan=False))
    by_score = {f["score"]: f for f in fits}
    assert len(fits) == 2 and by_score["loss"]["scale"] == "log"
    assert by_score["loss"]["saturation"] is None
    assert by_score["knn_accuracy"]["saturation"]["at_most"] is True
    assert "3 of 18 points from unconverged runs" in by_score["knn_accuracy"]["flags"]
    assert by_score["knn_accuracy"]["read_from"] == ""


def test_table_with_conflicting_or_repeated_rows():
    table = rows_of(X, 0.3 + noise(0.01))
    again = pd.concat([table, table.head(2)])
    assert fit_table(again)[0]["points"] == 18
    conflict = pd.concat([table, table.head(1).assign(value=0.9)])
    with pytest.raises(ValueError, match="repeat another row with another value"):
        fit_table(conflict)


def test_table_without_its_columns_is_refused():
    with pytest.raises(ValueError, match=r"lacks the columns \['exposures', 'note'\]"):
        fit_table(rows_of(X, X).drop(columns=["note", "exposures"]))


def test_mixed_exposures_at_one_size_are_flagged():
    table = rows_of(X, 0.3 + noise(0.01))
    table.loc[0, "exposures"] *= 2
    assert "several exposures at one size" in fit_table(table)[0]["flags"]


def test_saturation_point_of_known_means():
    y = np.repeat([0.2, 0.5, 0.74, 0.79, 0.80, 0.78], 3) + noise(0.001)
    point = saturation_point(X, y)
    assert point["size"] == pytest.approx(SIZES[3]) and point["at_most"] is False
    low, high = point["interval"]
    assert low <= point["size"] <= high and high < SIZES[5]
    assert saturation_point(X, 0.5 + noise(0.001))["at_most"] is True
    rising = saturation_point(X, 0.1 * np.log10(X) + noise(0.001))
    assert rising["at_least"] is True and rising["size"] == SIZES[5] and not point["at_least"]
    assert saturation_point(X, -0.5 + noise(0.001)) is None


def test_trend_is_the_slope_per_tenfold_size():
    y = 0.1 * np.log10(X) + noise(0.005, 3)
    found = trend(X, y)
    assert found["slope"] == pytest.approx(np.polyfit(np.log10(X), y, 1)[0])
    assert found["interval"][0] < 0.1 < found["interval"][1]
    assert len(found["per_size"]) == 6


def test_flat_scores_are_called_a_trend_in_about_one_of_twenty_cases():
    """Binomial 99.9 % range of 800 trials at 5 %: 21 to 62."""
    x = np.repeat(np.geomspace(400, 18_000, 4), 3)
    values = np.random.default_rng(1).normal(0.3, 0.01, (800, len(x)))
    intervals = [trend(x, y)["interval"] for y in values]
    assert 21 <= sum(low > 0 or high < 0 for low, high in intervals) <= 62


def test_too_few_repeats_have_a_slope_without_interval():
    found = trend(np.repeat([100, 1000], 2), [0.1, 0.2, 0.3, 0.4])
    assert found["slope"] == pytest.approx(0.2) and found["interval"] is None


def test_difference_pairs_by_size_and_seed():
    """Seeds share a large effect: paired, the gap is sharp; rows without partner drop out."""
    shared = np.tile([-0.1, 0.0, 0.1], 6)
    one = rows_of(X, 0.5 + shared + 0.02 * np.log10(X) + noise(0.001, 1))
    other = rows_of(X, 0.4 + shared + noise(0.001, 2))
    found = difference(one.sample(frac=1, random_state=0), other.iloc[1:])
    assert found["points"] == 17
    assert found["slope"] == pytest.approx(0.02, abs=0.002)
    assert 0 < found["interval"][0] < found["interval"][1] < 0.03
