"""Simulated curves of known truth in; how often intervals hold it out, as rows of a table.

A case is excused where the fit says that a coefficient sits on a bound or is not identified. The
null test is the trend of a flat score (trends.py): how often its interval leaves out zero.
"""

import dataclasses
import os
import pathlib

import numpy as np
import pandas as pd
from tqdm import tqdm

from scaling.analyse import cautions, intervals
from scaling.analyse.fits import cells_of
from scaling.analyse.forms import FORMS, columns_of, curve, searched_point
from scaling.analyse.refits import refit
from scaling.analyse.trends import trend

TRUTHS = {
    ("constant", "raw"): {"E": 0.3},
    ("power", "raw"): {"E": 0.1, "A": 2.0, "alpha": 0.3},
    ("power", "log"): {"E": 3.0, "A": 20.0, "alpha": 0.4},
    ("saturating", "raw"): {"S_inf": 0.5, "D0": 3.0, "s": 0.4},
    ("two_variables", "log"): {"E": 1.7, "A": 400.0, "B": 300.0, "alpha": 0.5, "beta": 0.6},
    ("repeated", "log"): {"E": 2.0, "A": 30.0, "alpha": 0.4, "R_star": 15.39},
    ("broken", "log"): {"E": 2.0, "A": 20.0, "alpha": 0.2, "beta": 0.6, "D0": 10_000.0},
}  # fmt: skip
FEW = {"two_variables": 4, "repeated": 4, "broken": 9}  # sizes along each variable
NOISES = {"raw": (0.003, 0.01, 0.02), "log": (0.003, 0.01, 0.02)}
EXPOSURES = (1, 2, 4, 8, 16, 64)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """noise: standard deviation on `scale`; tails: "normal" or "heavy" (Student's t, 3 degrees)."""

    form: str
    scale: str
    noise: float
    tails: str = "normal"
    sizes: int = 6
    seeds: int = 3

    def design(self):
        """Sizes x (n,) and x2 (n,) or None."""
        small, large = (1e3, 1e6) if self.form == "two_variables" else (100, 1e5)
        large = 1e6 if self.form == "broken" else large
        sizes = np.geomspace(small, large, self.sizes)
        if self.form == "two_variables":
            x, x2 = np.meshgrid(sizes, np.geomspace(1e5, 1e8, self.sizes))
        elif self.form == "repeated":
            x, times = np.meshgrid(sizes, EXPOSURES)
            x2 = x * times
        else:
            return np.repeat(sizes, self.seeds), None
        return np.repeat(x.ravel(), self.seeds), np.repeat(x2.ravel(), self.seeds)

    def errors(self, cases: int, n: int) -> np.ndarray:
        """Noise (cases, n), the same in each run."""
        rng = np.random.default_rng([n, round(1e6 * self.noise)])
        if self.tails == "normal":
            return rng.normal(0, self.noise, (cases, n))
        return rng.standard_t(3, (cases, n)) * self.noise / np.sqrt(3)


def scenarios() -> list[Scenario]:
    """Each form at three noise levels, and at the middle one with many sizes and heavy tails."""
    found = []
    for form, scale in TRUTHS:
        few = FEW.get(form, 6)
        middle = NOISES[scale][1]
        found += [Scenario(form, scale, noise, sizes=few) for noise in NOISES[scale]]
        found.append(Scenario(form, scale, middle, sizes=2 * few))
        found.append(Scenario(form, scale, middle, "heavy", few))
    found.append(Scenario("saturating", "raw", 0.01, sizes=12, seeds=1))
    return found


def measure(scenario: Scenario, cases: int, draws: int) -> list[dict]:
    """One row for each coefficient and kind of interval."""
    form, scale = scenario.form, scenario.scale
    truth = TRUTHS[form, scale]
    x, x2 = scenario.design()
    columns, centres = columns_of(form, x, x2)
    exact = searched_point(form, {k: np.array([v]) for k, v in truth.items()}, centres[None])[0]
    slopes = slice(1, 1 + FORMS[form].slopes)
    exact[slopes] = np.exp(exact[slopes])
    targets = curve(form, scale, exact, columns) + scenario.errors(cases, len(x))
    points, losses = refit(form, scale, columns, targets)
    held, excused = {}, []
    for i, (target, point) in enumerate(zip(targets, points, strict=True)):
        given = columns, cells_of(x, x2), target, point
        drawn = intervals.bootstrap(form, scale, *given, draws)
        warned = cautions.on_bounds(form, scale, point, columns)
        warned += cautions.unidentified(form, drawn["points"], columns).values()
        excused.append(bool(warned))
        kinds = {
            "bootstrap": intervals.percentiles(form, drawn["points"], centres),
            "profile": intervals.profiles(form, scale, columns, centres, target, point, losses[i],
                                          drawn),
        }  # fmt: skip
        for kind, found in kinds.items():
            for name, (low, high) in found.items():
                inside = (low is None or low <= truth[name]) and (
                    high is None or truth[name] <= high
                )
                held.setdefault((kind, name), []).append(inside)
    judged = ~np.array(excused)
    return [
        dataclasses.asdict(scenario) | {
            "interval": kind, "parameter": name, "cases": cases,
            "draws": draws, "excused": int((~judged).sum()),
            "held": round(float(np.mean(np.array(inside)[judged])), 4) if judged.any() else None,
        }
        for (kind, name), inside in held.items()
    ]  # fmt: skip


def measure_all(chosen: list[Scenario], cases: int, draws: int, out: pathlib.Path) -> pd.DataFrame:
    """The table of some scenarios, with the null tests where one is of the constant.

    It is written to `out` when all are measured; after each, its rows so far to `.NAME.part`, from
    which the next run of as many cases and draws goes on.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.part")
    before = pd.read_csv(part).to_dict("records") if part.exists() else []
    rows = null_tests(5 * cases) if any(s.form == "constant" for s in chosen) else []
    for scenario in tqdm(chosen, unit="scenario"):
        of = dataclasses.asdict(scenario) | {"cases": cases, "draws": draws}
        done = [row for row in before if of.items() <= row.items()]
        rows += done or measure(scenario, cases, draws)
        written = part.with_suffix(".new")
        table(rows).to_csv(written, index=False)
        os.replace(written, part)
    os.replace(part, out)
    return table(rows)


def null_tests(cases: int) -> list[dict]:
    """How often the trend of a flat score is called one, at a nominal 5 %."""
    rows = []
    for tails in ("normal", "heavy"):
        for sizes in (4, 6, 12):
            scenario = Scenario("constant", "raw", 0.01, tails, sizes)
            x, _ = scenario.design()
            found = [trend(x, 0.3 + noise)["interval"] for noise in scenario.errors(cases, len(x))]
            alarms = np.mean([low > 0 or high < 0 for low, high in found])
            rows.append(dataclasses.asdict(scenario) | {
                "interval": "null test", "parameter": "slope", "cases": cases,
                "draws": 4000, "excused": 0,
                "held": round(1 - float(alarms), 4),
            })  # fmt: skip
    return rows


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows with the verdict: 90 to 98 % held (null test: 93 to 97 %), at most 10 % excused."""
    found = pd.DataFrame(rows)
    null = found["interval"] == "null test"
    low, high = np.where(null, 0.93, 0.90), np.where(null, 0.97, 0.98)
    few = found["excused"] <= 0.1 * found["cases"]
    return found.assign(within=few & found["held"].between(low, high))
