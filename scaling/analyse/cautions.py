"""A fitted curve and its bootstrap in; words on what cannot be relied on out."""

import numpy as np
from scipy import stats

from scaling.analyse.forms import FORMS, bounds
from scaling.analyse.intervals import ENDS
from scaling.analyse.trends import MIN_FREEDOM


def unidentified(form: str, points, columns) -> dict[str, str]:
    """Searched numbers whose bootstrap interval reaches the end of their range, and words on it."""
    thetas, flags = points[:, 1 + FORMS[form].slopes :].T, {}
    for name, theta, low, high in zip(
        FORMS[form].searched, thetas, *bounds(form, columns), strict=True
    ):
        reached = np.quantile(theta, ENDS)
        if reached[0] <= low + 0.01 or reached[1] >= high - 0.01:
            flags[name] = f"{name} not identified: its interval reaches the searched range"
    return flags


def poor_fit(cells, y, fitted, coefficients: int) -> bool:
    """F test (1 %) of the misfit of the size means against the spread of the seeds."""
    sizes = np.unique(cells)
    within = sum(((y[cells == s] - y[cells == s].mean()) ** 2).sum() for s in sizes)
    free, free_within = len(sizes) - coefficients, len(y) - len(sizes)
    if free < 1 or free_within < MIN_FREEDOM or within < 1e-20:
        return False
    misfit = ((y - fitted) ** 2).sum() - within
    return bool(misfit / free > stats.f.ppf(0.99, free, free_within) * within / free_within)


def not_flat(x, y) -> bool:
    """t test (1 %) of the slope of y in log x: a constant is then no description of the scores."""
    if len(np.unique(x)) < 3 or np.ptp(y) == 0:
        return False
    return bool(stats.linregress(np.log(x), y).pvalue < 0.01)


def on_bounds(form: str, scale: str, point, columns) -> list[str]:
    """Words for each coefficient that sits on the end of its range."""
    of, flags = FORMS[form], []
    thetas = point[1 + of.slopes :]
    for name, theta, lower, upper in zip(of.searched, thetas, *bounds(form, columns), strict=True):
        if name in ("alpha", "beta", "s"):
            words = ("straight in log size, no plateau", "only the smallest size differs")
        elif name == "R_star":
            words = ("repeats count for nothing", "repeats count as new data")
        else:
            words = ("no break inside the sizes",) * 2
        value = np.exp(lower if theta <= lower + 1e-3 else upper)
        shown = f" {value:g}" if name != "D0" else ""
        if theta <= lower + 1e-3:
            flags.append(f"{name} on its lower bound{shown}: {words[0]}")
        elif theta >= upper - 1e-3:
            flags.append(f"{name} on its upper bound{shown}: {words[1]}")
    for name, slope in zip(of.names[1 : 1 + of.slopes], point[1 : 1 + of.slopes], strict=True):
        if slope <= 0:
            flags.append(f"{name} on its bound 0: no trend of this form's direction")
    if of.slopes and of.falls and point[0] <= (point[1] * 1e-3 if scale == "log" else 0.0):
        flags.append("E on its bound 0: no floor in sight")
    if form == "saturating" and point[0] > 1:
        flags.append("S_inf above 1, beyond the score's range: the plateau is not in sight")
    return flags
