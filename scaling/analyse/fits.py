"""Scores against data size in; fitted curves with intervals, flags and saturation points out.

Losses are fitted by the summed Huber loss on logs, all other scores by least squares as they are;
the forms are in forms.py, the search in refits.py. Every random draw comes from a fixed seed.
"""

import numpy as np
import pandas as pd
from tqdm import tqdm

from scaling.analyse import cautions, intervals, trends
from scaling.analyse.forms import FORMS, bounds, columns_of, curve, named
from scaling.analyse.refits import refit
from scaling.analyse.trends import KEY, SEEDS, finite

CANDIDATES = {  # the form is chosen among, where none is named; broken from 7 sizes on
    ("raw", 1): ("constant", "power", "saturating", "broken"),
    ("log", 1): ("constant", "power", "broken"),
    ("raw", 2): ("constant", "power", "two_variables"),
    ("log", 2): ("constant", "power", "two_variables"),
}
LOWER_IS_BETTER = ("loss", "repeat", "repeat_masked", "repeat_unmasked")
MIN_SIZES = 4


def fit_table(rows: pd.DataFrame, size: str = "cells", draws: int = 500) -> list[dict]:
    """One fitted curve per (task, dataset, score, positions, read_from, model).

    Args:
      rows: the scores table, one row per score; floors and rows of size 0 have no curve.
      size: column of the size D, `cells` or `tokens`.
      draws: bootstrap refits behind each interval.
    Returns: JSON-serialisable dicts: the keys above, what `fit_curve` returns, and where runs had
      not converged what it returns `without_unconverged` ones, else None.
    Raises: ValueError on missing columns, on one run scored twice with two values, on a loss
      that is not positive.
    """
    table = trends.tidy(rows)
    table = table[(table["kind"] != "floor") & (table[size] > 0)]
    same = [*KEY, size, "exposures", *SEEDS]
    table = table.drop_duplicates([*same, "value"])
    twice = table[table.duplicated(same)]
    if len(twice):
        raise ValueError(
            f"the scores table holds {len(twice)} rows that repeat another row with another value, "
            f"first {twice.iloc[0][same].to_dict()}; keep one row per run and score"
        )
    fits = []
    groups = table.groupby(KEY, sort=True)
    for key, group in tqdm(groups, desc="curves", unit="curves", leave=False):
        scale = "log" if group["score"].iloc[0] == "loss" else "raw"
        converged = group[group["converged"] != False]  # noqa: E712 (None is neither)
        try:
            fit = _with_saturation(group, size, scale, draws)
            fit["without_unconverged"] = None
            if unconverged := len(group) - len(converged):
                fit["flags"].append(f"{unconverged} of {len(group)} points from unconverged runs")
                fit["without_unconverged"] = _with_saturation(converged, size, scale, draws)
        except ValueError as error:
            raise ValueError(f"{dict(zip(KEY, key, strict=True))}: {error}") from error
        if group.groupby(size)["exposures"].nunique().max() > 1:
            fit["flags"].append("several exposures at one size")
        fits.append(dict(zip(KEY, key, strict=True)) | {"size": size} | fit)
    return fits


def _with_saturation(group: pd.DataFrame, size: str, scale: str, draws: int) -> dict:
    fit = fit_curve(group[size], group["value"], scale=scale, draws=draws)
    if scale == "raw" and len(group) and group["score"].iloc[0] not in LOWER_IS_BETTER:
        fit["saturation"] = trends.saturation_point(group[size], group["value"])
    return fit


def fit_curve(
    x, y, form: str | None = None, scale: str = "raw", draws: int = 500, x2=None
) -> dict:
    """Fit one curve; the form of least AICc is chosen where none is named.

    Args:
      x: sizes, shape (n,), > 0; a size recurs once per seed.
      y: scores, shape (n,); rows with NaN are dropped and counted.
      scale: "raw" (least squares) or "log" (Huber on log y, y > 0).
      x2: second sizes (n,), > 0: model sizes N, or for form "repeated" the exposures.
    Returns: dict with form (None and a `reason` where sizes are too few), parameters, intervals
      (95 % of the bootstrap, None where none can be had), profile_intervals, aicc, left_out_error
      (at the largest size, fitted without it, on `scale`), forms (the same for each form), flags,
      band (x, low, mid, high; None of two variables), sizes, means, points, dropped, saturation
      (filled by `fit_table`).
    """
    x, y, dropped, *second = finite(x, y, *([] if x2 is None else [x2]))
    if scale == "log" and (y <= 0).any():
        raise ValueError(
            f"{int((y <= 0).sum())} of {len(y)} losses are zero or negative, and the fit needs "
            "their logarithm; remove those runs or fit them as they are (--scale=raw)"
        )
    x2 = second[0] if second else None
    sizes = np.unique(x)
    result = {
        "form": None, "reason": "", "parameters": {}, "intervals": {}, "profile_intervals": {},
        "aicc": None, "left_out_error": None, "forms": {}, "flags": [], "band": None,
        "scale": scale, "sizes": sizes.tolist(), "means": [float(y[x == s].mean()) for s in sizes],
        "points": len(y), "dropped": dropped, "saturation": None,
    }  # fmt: skip
    if dropped:
        result["flags"].append(f"{dropped} rows without a value dropped")
    result["reason"] = too_few(x, x2, form)
    if result["reason"]:
        return result
    target = np.log(y) if scale == "log" else y
    for name in _candidates(scale, x, x2) if form is None else (form,):
        columns, centres = columns_of(name, x, x2)
        points, _ = refit(name, scale, columns, target[None])
        residuals = target - curve(name, scale, points[0], columns)
        result["forms"][name] = {
            "parameters": {k: _number(v[0]) for k, v in named(name, points, centres).items()},
            "aicc": _aicc(residuals, len(points[0])),
            "left_out_error": _left_out_error(name, scale, x, x2, target),
        }
    judged = {k: np.inf if v["aicc"] is None else v["aicc"] for k, v in result["forms"].items()}
    best = min(judged, key=judged.get)
    result |= {"form": best} | result["forms"][best]
    _add_intervals(result, x, x2, target, draws)
    return result


def too_few(x, x2, form: str | None) -> str:
    """Why sizes are too few for a curve (of this form), or ""."""
    needed = FORMS[form].sizes if form else (MIN_SIZES,)
    for values, which, least in zip((x, x2), ("", "second "), needed, strict=False):
        if (count := len(np.unique(values))) < (least := max(least, 4 - 2 * bool(which))):
            of = f"{form} curve" if form and least != MIN_SIZES else "curve"
            return f"{count} distinct {which}sizes with a value; a {of} needs {least}"
    return ""


def _candidates(scale, x, x2):
    names = CANDIDATES[scale, 1 if x2 is None else 2]
    return [name for name in names if name != "broken" or len(np.unique(x)) > 6]


def _add_intervals(result: dict, x, x2, target, draws: int) -> None:
    """Adds bootstrap and profile intervals, band and flags."""
    form, scale, flags = result["form"], result["scale"], result["flags"]
    columns, centres = columns_of(form, x, x2)
    points, losses = refit(form, scale, columns, target[None])
    point, cells = points[0], cells_of(x, x2)
    again, lower = refit(form, scale, columns, target[None], near=point)
    if lower[0] < losses[0] * (1 - 1e-6) - 1e-20:
        flags.append("not converged: a second search from the result still improved it")
    fitted = curve(form, scale, point, columns)
    result["intervals"] = dict.fromkeys(result["parameters"])
    result["profile_intervals"] = dict.fromkeys(result["parameters"])
    drawn = intervals.bootstrap(form, scale, columns, cells, target, point, draws)
    if form == "constant" and x2 is None and cautions.not_flat(x, target):
        flags.append(
            "not flat: the scores change with size, by a form that is none of these or that so few "
            "points do not tell; name one, or run more seeds and sizes"
        )
    if drawn["single"]:
        flags.append("single seed: intervals over points")
    flags.extend(cautions.on_bounds(form, scale, point, columns))
    if x2 is None:
        result["band"] = _band(form, scale, x, centres, point, drawn["points"])
    if drawn["points"] is None:
        flags.append("too few points for intervals")
        return
    ends = intervals.percentiles(form, drawn["points"], centres)
    result["intervals"] = {name: [_number(end) for end in pair] for name, pair in ends.items()}
    result["profile_intervals"] = intervals.profiles(
        form, scale, columns, centres, target, point, float(lower[0]), drawn
    )
    flags.extend(cautions.unidentified(form, drawn["points"], columns).values())
    if cautions.poor_fit(cells, target, fitted, len(point)):
        flags.append("poor fit: size means leave the curve by more than seeds explain")


def cells_of(x, x2=None) -> np.ndarray:
    """A number (n,) for each row, equal where all sizes are."""
    both = x[:, None] if x2 is None else np.stack([x, x2], 1)
    return np.unique(both, axis=0, return_inverse=True)[1].ravel()


def _band(form, scale, x, centres, point, points) -> dict:
    grid = np.geomspace(x.min(), x.max(), 60)
    columns = (np.log(grid) - np.log(centres[0]))[None]
    back = np.exp if scale == "log" else np.asarray
    band = {"x": grid.tolist(), "low": None, "high": None}
    band["mid"] = back(curve(form, scale, point, columns)).tolist()
    if points is not None:
        drawn = back(curve(form, scale, points, columns))
        low, high = np.quantile(drawn, intervals.ENDS, axis=0)
        band |= {"low": low.tolist(), "high": high.tolist()}
    return band


def _aicc(residuals, coefficients: int) -> float | None:
    """Corrected Akaike criterion from the Gaussian likelihood, its variance counted too."""
    n, k = len(residuals), coefficients + 1
    if n - k - 1 <= 0:
        return None
    variance = max(float((residuals**2).mean()), 1e-24)  # an exact fit must not be minus infinity
    return float(n * np.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _left_out_error(form: str, scale: str, x, x2, target) -> float | None:
    """|prediction - mean score| at the largest size, fitted to the smaller ones; on `scale`.

    Of two variables the mean over the second sizes there; None where too few sizes are left.
    """
    largest, columns = x == x.max(), columns_of(form, x, x2)[0]
    kept = columns[:, ~largest]
    if form == "broken" and len(np.unique(kept[0])) < 5:
        return None
    limits = bounds(form, kept)
    points, _ = refit(form, scale, columns, target[None], weights=~largest, limits=limits)
    predicted = curve(form, scale, points[0], columns)
    cells = cells_of(x, x2)
    misses = [
        abs(predicted[cells == cell].mean() - target[cells == cell].mean())
        for cell in np.unique(cells[largest])
    ]
    return float(np.mean(misses))


def _number(value) -> float | None:
    return float(value) if np.isfinite(value) else None
