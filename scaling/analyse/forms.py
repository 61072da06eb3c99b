"""Sizes in; the forms of a scaling curve out: their terms, ranges, values and published names.

Every form is an intercept plus or minus a sum of terms c_j * exp(t_j), where the logarithms t_j
depend on few searched numbers theta, all held as logarithms. D = size, u = D over its geometric
mean (which keeps coefficients apart), N = second size, U = unique cells, R = exposures/U - 1:

  constant       E
  power          E + A D^-alpha
  saturating     S_inf - (D/D0)^-s, which rises
  two_variables  E + A N^-alpha + B D^-beta (Hoffmann et al. 2022)
  repeated       E + A D'^-alpha, D' = U + U R_star (1 - exp(-R/R_star)) (Muennighoff et al. 2023)
  broken         E + A D^-alpha (1 + (D/D0)^(1/f))^-((beta - alpha) f), f = 0.1: exponent alpha
                 below D0 and beta above (Caballero et al. 2023, one break of fixed sharpness)
"""

import dataclasses
from collections.abc import Callable

import numpy as np

EXPONENTS = (0.02, 3.0)  # searched range of every exponent; at its ends a flag is raised
R_STARS = (0.1, 1000.0)
SHARPNESS = 0.1
TINY = 1e-6  # a coefficient below this share of the largest value counts as zero


@dataclasses.dataclass(frozen=True)
class Form:
    """names: published, as coefficients are ordered (intercept, slopes, searched).

    terms: (array module, theta (..., p), columns (c, n)) -> logarithms of terms (..., m, n).
    starts: points of the search's grid along each searched number.
    sizes: distinct values each variable must have; fewer are refused.
    """

    names: tuple[str, ...]
    terms: Callable
    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    falls: bool = True

    @property
    def slopes(self) -> int:
        return len(self.names) - 1 - len(self.starts)

    @property
    def searched(self) -> tuple[str, ...]:
        return self.names[1 + self.slopes :]


def _none(xp, theta, columns):
    return xp.zeros((*theta.shape[:-1], 0, columns.shape[-1]))


def _power(xp, theta, columns):
    return -xp.exp(theta[..., 0, None, None]) * columns[:1]


def _two_variables(xp, theta, columns):
    return -xp.exp(theta)[..., None] * columns[::-1]  # alpha goes with the second size


def _repeated(xp, theta, columns):
    star = xp.exp(theta[..., 1, None])
    useful = columns[0] + xp.log1p(-star * xp.expm1(-columns[1] / star))
    return (-xp.exp(theta[..., 0, None]) * useful)[..., None, :]


def _broken(xp, theta, columns):
    alpha, beta, edge = (theta[..., i, None] for i in range(3))
    beyond = SHARPNESS * xp.logaddexp(0.0, (columns[0] - edge) / SHARPNESS)
    falling = xp.exp(alpha) * columns[0] + (xp.exp(beta) - xp.exp(alpha)) * beyond
    return -falling[..., None, :]


FORMS = {
    "constant": Form(("E",), _none, (), (2,)),
    "power": Form(("E", "A", "alpha"), _power, (48,), (4,)),
    "saturating": Form(("S_inf", "D0", "s"), _power, (48,), (4,), falls=False),
    "two_variables": Form(("E", "A", "B", "alpha", "beta"), _two_variables, (12, 12), (3, 3)),
    "repeated": Form(("E", "A", "alpha", "R_star"), _repeated, (16, 8), (3, 3)),
    "broken": Form(("E", "A", "alpha", "beta", "D0"), _broken, (8, 8, 8), (6,)),
}  # fmt: skip
ON_LOGS = ("two_variables", "repeated", "broken")  # forms of losses


def columns_of(form: str, x, x2=None) -> tuple[np.ndarray, np.ndarray]:
    """What the terms are functions of, (c, n), and the sizes (c,) whose logarithms are their 0.

    Args: x, x2: sizes (n,), > 0; x2 is N, or the exposures of `repeated`.
    """
    log_x = np.log(x)
    centre = np.log(np.unique(x)).mean()
    if form == "repeated":
        return np.stack([log_x - centre, np.maximum(x2 / x - 1, 0)]), np.exp([centre, 0.0])
    if form == "two_variables":
        other = np.log(np.unique(x2)).mean()
        return np.stack([log_x - centre, np.log(x2) - other]), np.exp([centre, other])
    return (log_x - centre)[None], np.exp([centre])


def bounds(form: str, columns) -> tuple[np.ndarray, np.ndarray]:
    """Ends (p,) of the searched range of theta."""
    ranges = dict.fromkeys(("alpha", "beta", "s"), np.log(EXPONENTS)) | {"R_star": np.log(R_STARS)}
    if form == "broken":  # two sizes at least on either side
        edges = np.unique(columns[0])
        ranges["D0"] = np.array([edges[1], edges[-2]])
    of_form = [ranges[name] for name in FORMS[form].searched]
    low, high = np.array(of_form, float).reshape(-1, 2).T
    return low, high


def curve(form: str, scale: str, points, columns) -> np.ndarray:
    """Values (..., n) at points (..., k) on `scale`: logarithms for "log"."""
    of, points = FORMS[form], np.asarray(points)
    terms = np.exp(of.terms(np, points[..., 1 + of.slopes :], columns))
    sign = 1.0 if of.falls else -1.0
    slopes = points[..., 1 : 1 + of.slopes, None]
    value = points[..., :1] + sign * (slopes * terms).sum(-2)
    return np.log(value) if scale == "log" else value


def named(form: str, points, centres) -> dict[str, np.ndarray]:
    """Coefficients (..., k) under their published names, in the units of the sizes."""
    of, points = FORMS[form], np.moveaxis(np.asarray(points, float), -1, 0)
    values = dict(zip(of.names, points, strict=True))
    for name in of.searched:
        values[name] = np.exp(points[of.names.index(name)])
    with np.errstate(over="ignore", divide="ignore"):
        if "A" in values:
            first = centres[-1] if form == "two_variables" else centres[0]
            values["A"] = values["A"] * first ** values["alpha"]
        if "B" in values:
            values["B"] = values["B"] * centres[0] ** values["beta"]
        if form == "saturating":  # (D/D0)^-s = slope * (D/centre)^-s
            values["D0"] = centres[0] * values["D0"] ** (1 / values["s"])
        if form == "broken":
            values["D0"] = values["D0"] * centres[0]
    return values


def searched_point(form: str, values: dict, centres) -> np.ndarray:
    """Published coefficients, each (Q,), as (intercept, logs of slopes, theta) (Q, k).

    Args: centres: (Q, c), sizes whose logarithms are 0 in the columns.
    """
    of, logs = FORMS[form], np.log(centres)
    with np.errstate(divide="ignore"):
        point = {n: v if n == of.names[0] else np.log(v) for n, v in values.items()}
    if "A" in point:
        point["A"] = point["A"] - values["alpha"] * logs[:, -1 if form == "two_variables" else 0]
    if "B" in point:
        point["B"] = point["B"] - values["beta"] * logs[:, 0]
    if form == "saturating":
        point["D0"] = values["s"] * (point["D0"] - logs[:, 0])
    if form == "broken":
        point["D0"] = point["D0"] - logs[:, 0]
    return np.stack([point[name] for name in of.names], -1)
