"""Simulated tables with known truth in; recovered curves, differences and refusals."""

import json

import numpy as np
import pandas as pd
import pytest

from scaling.analyse.tables import fit_columns, words

SIZES = np.geomspace(100, 100_000, 6)


def grid(x, second=(1.0,), seeds=2) -> pd.DataFrame:
    rows = [(a, b, seed) for a in x for b in second for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["D", "N", "seed"])


def broken(D):
    sharp = np.where(D < 1e4, D**-0.2, 1e4**0.4 * D**-0.6)
    return 2 + 20 * sharp


def repeated(U, exposures):
    useful = U * (1 + 15.39 * (1 - np.exp(-(exposures / U - 1) / 15.39)))
    return 2 + 30 * useful**-0.4


CURVES = {
    "constant": (grid(SIZES), lambda t: 0.3 + 0 * t["D"], {"E": 0.3}),
    "power": (grid(SIZES), lambda t: 0.1 + 2 * t["D"] ** -0.3, {"E": 0.1, "A": 2, "alpha": 0.3}),
    "saturating": (
        grid(SIZES), lambda t: 0.5 - (t["D"] / 3) ** -0.4, {"S_inf": 0.5, "D0": 3, "s": 0.4},
    ),
    "two_variables": (
        grid(np.geomspace(1e3, 1e6, 5), np.geomspace(1e5, 1e7, 4)),
        lambda t: 1.7 + 400 * t["N"] ** -0.5 + 300 * t["D"] ** -0.6,
        {"E": 1.7, "A": 400, "B": 300, "alpha": 0.5, "beta": 0.6},
    ),
    "repeated": (
        grid(np.geomspace(1e3, 1e5, 4), (1, 2, 8, 64)).eval("N = N * D"),
        lambda t: repeated(t["D"], t["N"]), {"E": 2, "A": 30, "alpha": 0.4, "R_star": 15.39},
    ),
    "broken": (
        grid(np.geomspace(1e2, 1e6, 10)), lambda t: broken(t["D"]),
        {"E": 2, "A": 20, "alpha": 0.2, "beta": 0.6, "D0": 1e4},
    ),
}  # fmt: skip


SLOW = ("two_variables", "repeated", "broken")  # to compile


@pytest.mark.parametrize(
    "form", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in CURVES]
)
def test_each_form_is_recovered_with_intervals_under_its_published_names(form):
    table, value, truth = CURVES[form]
    noise = np.exp(np.random.default_rng(1).normal(0, 1e-3, len(table)))
    table = table.assign(loss=value(table) * noise)
    second = "N" if form in ("two_variables", "repeated") else ""
    table = table if second else table.drop(columns="N")
    scale = "raw" if form == "saturating" else "log"
    fit = fit_columns(table, "D", "loss", second, form, seed="seed", scale=scale, draws=200)
    assert fit["form"] == form and list(fit["parameters"]) == list(truth)
    assert fit["parameters"] == pytest.approx(truth, rel=0.1)
    for kind in ("intervals", "profile_intervals"):
        for name, (low, high) in fit[kind].items():
            assert low < high and low == pytest.approx(truth[name], rel=0.4)
    assert fit["flags"] == [] and np.isfinite(fit["left_out_error"])
    assert json.loads(json.dumps(fit, allow_nan=False))["parameters"] == fit["parameters"]


def scores(**columns) -> pd.DataFrame:
    table = grid(SIZES, seeds=3).drop(columns="N")
    noise = np.random.default_rng(0).normal(0, 0.003, len(table))
    return table.assign(score=0.5 - (table["D"] / 3) ** -0.4 + noise, **columns)


def test_the_form_of_least_aicc_is_chosen_and_saturation_is_told():
    fit = fit_columns(scores(), "D", "score", seed="seed", draws=200)
    assert fit["form"] == "saturating" and set(fit["forms"]) == {"constant", "power", "saturating"}
    assert fit["scale"] == "raw" and fit["saturation"]["size"] == pytest.approx(SIZES[4])
    assert "saturating, 18 points at 6 sizes" in words(fit)


def test_two_groups_differ_by_what_was_simulated():
    other = scores(model="cab")
    other["score"] = 0.56 - (other["D"] / 3) ** -0.5 + other["score"] - scores()["score"]
    noise = np.random.default_rng(5).normal(0, 0.003, len(other))
    both = pd.concat([scores(model="mlm"), other.assign(score=other["score"] + noise)])
    found = fit_columns(both, "D", "score", group="model", seed="seed", draws=200)
    assert set(found["groups"]) == {"mlm", "cab"}
    [pair] = found["differences"]
    assert (pair["one"], pair["other"], pair["form"]) == ("cab", "mlm", "saturating")
    for name, gap in {"S_inf": -0.06, "s": -0.1}.items():
        low, high = pair["parameters"][name]["interval"]
        assert low < gap < high < 0
    truth = np.log10([3 * 0.028 ** (-1 / 0.5), 3 * 0.025 ** (-1 / 0.4)])
    assert pair["parameters"]["log10_saturation"]["value"] == pytest.approx(np.diff(truth)[0], 0.2)


def test_one_seed_is_said_and_unscored_rows_are_counted():
    table = scores().query("seed == 0").reset_index(drop=True)
    table = pd.concat([table, table.assign(D=200, score=np.nan).head(1)])
    fit = fit_columns(table, "D", "score", form="saturating", seed="seed", draws=200)
    assert fit["flags"][:2] == ["1 rows without a value dropped",
                                "single seed: intervals over points"]  # fmt: skip
    assert fit["intervals"]["S_inf"][0] < fit["parameters"]["S_inf"]


REFUSED = {
    "few": (lambda t: t[t["D"] < 2000], {}, "3 distinct sizes with a value; a curve needs 4"),
    "log": (lambda t: t.assign(score=-t["score"]), {"scale": "log"}, "zero or negative"),
    "copies": (lambda t: pd.concat([t, t.head(2)]), {"seed": "seed"}, "2 rows are copies"),
    "mixed": (
        lambda t: pd.concat([t.assign(rate=1e-3), t.assign(rate=1e-4, score=0.1)]), {},
        r"mixed configurations in one curve.*rate.*--group",
    ),
    "mixed seeds": (
        lambda t: pd.concat([t.assign(rate=1e-3), t.assign(rate=1e-4, score=0.1)]),
        {"seed": "seed"}, r"36 rows share their size and seed.*they differ in \['rate'\]",
    ),
    "no size": (
        lambda t: t.assign(D=t["D"].where(t.index != 3)), {}, r"D is empty.* 1 of 18.*first row 4",
    ),
    "size zero": (lambda t: t.assign(D=t["D"].where(t.index != 3, 0)), {}, "positive number"),
    "words": (
        lambda t: t.assign(score=["bad", *t["score"][1:]]), {}, "score, row 1: 'bad' is no number",
    ),
    "columns": (lambda t: t.drop(columns="score"), {}, r"no column \['score'\]; it has"),
    "form": (lambda t: t, {"form": "cubic"}, "--form=cubic is unknown; there are constant, power"),
    "second": (lambda t: t, {"form": "two_variables"}, "needs --x2, the column of model sizes"),
    "break": (
        lambda t: t[t["D"] < 50_000], {"form": "broken"}, "5 distinct.*broken curve needs 6",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_without_an_answer_are_refused(name):
    change, arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        fit_columns(change(scores()), "D", "score", **arguments)
