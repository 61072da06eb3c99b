"""Profile intervals against scipy's own, the bootstrap's spread, and the coverage of both."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from scaling.analyse import coverage, intervals
from scaling.analyse.fits import cells_of
from scaling.analyse.forms import FORMS, columns_of, curve, named, searched_point
from scaling.analyse.refits import refit

X = np.repeat(np.geomspace(100, 100_000, 6), 3)
Y = 0.5 - (X / 3) ** -0.4 + np.random.default_rng(2).normal(0, 0.01, len(X))


def fitted():
    columns, centres = columns_of("saturating", X)
    points, losses = refit("saturating", "raw", columns, Y[None])
    return columns, centres, points[0], float(losses[0])


@pytest.fixture(scope="module")
def drawn():
    columns, _, point, _ = fitted()
    return intervals.bootstrap("saturating", "raw", columns, cells_of(X), Y, point, 500)


def test_profile_ends_where_scipys_constrained_fit_loses_as_much(drawn):
    columns, centres, point, loss = fitted()
    found = intervals.profiles(
        "saturating", "raw", columns, centres, Y, point, loss, drawn
    )["D0"]  # fmt: skip
    for onset in found:

        def residuals(p, onset=onset):
            return Y - p[0] + (X / onset) ** -p[1]

        held = optimize.least_squares(residuals, (0.5, 0.4), xtol=1e-14)
        allowed = drawn["excess"] / 3 * stats.norm.ppf(0.975) ** 2
        assert held.cost - loss == pytest.approx(allowed, rel=0.02)


def test_allowed_loss_is_the_likelihood_ratios_with_students_t(drawn):
    """Half the variance of the seeds times t squared, to the bootstrap's own error."""
    seeds = Y.reshape(6, 3)
    variance = ((seeds - seeds.mean(1, keepdims=True)) ** 2).sum() / 12
    assert drawn["free"] == 12
    allowed = drawn["excess"] / 3 * stats.norm.ppf(0.975) ** 2
    assert allowed == pytest.approx(0.5 * variance * stats.t.ppf(0.975, 12) ** 2, rel=0.15)


def test_draws_spread_as_the_linearised_curve_says(drawn):
    columns, _, point, _ = fitted()
    jacobian = []
    for step in np.eye(3) * 1e-6:
        ends = [curve("saturating", "raw", point + sign * step, columns) for sign in (1, -1)]
        jacobian.append((ends[0] - ends[1]) / 2e-6)
    variance = ((Y.reshape(6, 3) - Y.reshape(6, 3).mean(1, keepdims=True)) ** 2).sum() / 12
    spread = np.sqrt(np.diag(np.linalg.inv(np.array(jacobian) @ np.array(jacobian).T) * variance))
    widening = stats.t.ppf(0.975, 12) / stats.norm.ppf(0.975)
    assert drawn["points"][:, 2].std() == pytest.approx(spread[2] * widening, rel=0.15)


def test_too_few_points_have_no_draws():
    x, y = X[::3][:4], Y[::3][:4]
    columns, _ = columns_of("saturating", x)
    found = intervals.bootstrap("saturating", "raw", columns, cells_of(x), y, np.ones(3), 200)
    assert found == {"points": None, "single": True}


@pytest.mark.parametrize(("form", "scale"), coverage.TRUTHS)
def test_names_and_searched_numbers_are_inverse_and_the_curve_is_the_formula(form, scale):
    truth = coverage.TRUTHS[form, scale]
    x, x2 = coverage.Scenario(form, scale, 0.01, sizes=coverage.FEW.get(form, 6)).design()
    columns, centres = columns_of(form, x, x2)
    values = {name: np.array([value]) for name, value in truth.items()}
    point = searched_point(form, values, centres[None])[0]
    slopes = slice(1, 1 + FORMS[form].slopes)
    point[slopes] = np.exp(point[slopes])
    back = {name: float(value) for name, value in named(form, point, centres).items()}
    assert back == pytest.approx(truth)
    p = truth
    if form == "repeated":
        x = x * (1 + p["R_star"] * (1 - np.exp(-(x2 / x - 1) / p["R_star"])))
    formula = {
        "constant": lambda: p["E"] + 0 * x,
        "power": lambda: p["E"] + p["A"] * x ** -p["alpha"],
        "repeated": lambda: p["E"] + p["A"] * x ** -p["alpha"],
        "saturating": lambda: p["S_inf"] - (x / p["D0"]) ** -p["s"],
        "two_variables": lambda: p["E"] + p["A"] * x2 ** -p["alpha"] + p["B"] * x ** -p["beta"],
        "broken": lambda: p["E"] + p["A"] * x ** -p["alpha"]
        * (1 + (x / p["D0"]) ** 10) ** -((p["beta"] - p["alpha"]) / 10),
    }[form]()
    assert curve(form, "raw", point, columns) == pytest.approx(formula, rel=1e-10)


def test_coverage_counts_what_is_held_excused_and_judged():
    scenario = coverage.Scenario("constant", "raw", 0.01)
    rows = coverage.measure(scenario, 40, 200)
    assert [(row["interval"], row["parameter"]) for row in rows] == [
        ("bootstrap", "E"), ("profile", "E")
    ]  # fmt: skip
    assert all(0.8 <= row["held"] <= 1 and row["excused"] == 0 for row in rows)
    null = coverage.null_tests(200)
    assert len(null) == 6 and all(0.9 < row["held"] < 0.99 for row in null)
    low = {"interval": "bootstrap", "held": 0.89, "excused": 0, "cases": 100}
    cases = [low, low | {"held": 0.95}, low | {"held": 0.95, "excused": 11},
             low | {"interval": "null test", "held": 0.92}]  # fmt: skip
    assert coverage.table(cases)["within"].tolist() == [False, True, False, False]


def test_a_coverage_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    chosen = [coverage.Scenario("constant", "raw", noise) for noise in (0.01, 0.02, 0.03)]
    measured, out = [], tmp_path / "new" / "coverage.csv"

    def measure(scenario, cases, draws):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append((scenario.noise, cases))
        of = dataclasses.asdict(scenario) | {"cases": cases, "draws": draws}
        return [of | {"interval": kind, "parameter": "E", "excused": 0, "held": held}
                for kind, held in (("bootstrap", 0.95), ("profile", None))]  # fmt: skip

    monkeypatch.setattr(coverage, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        coverage.measure_all(chosen, 40, 200, out)
    assert not out.exists()
    measured.clear()
    found = coverage.measure_all(chosen, 40, 200, out)
    assert measured == [(0.03, 40)] and [path.name for path in out.parent.iterdir()] == [out.name]
    of_scenarios = found[found["interval"] != "null test"]
    assert of_scenarios["noise"].tolist() == [0.01, 0.01, 0.02, 0.02, 0.03, 0.03]
    assert of_scenarios["within"].tolist() == [True, False] * 3
    pd.testing.assert_frame_equal(pd.read_csv(out), found, check_dtype=False)
    with pytest.raises(KeyboardInterrupt):
        coverage.measure_all(chosen, 60, 200, out)
    assert measured[1:] == [(0.01, 60)], "rows of other cases are no part of it"
    assert len(pd.read_csv(out)) == len(found), "the table before stays until the next is whole"
