"""Scores against data size in; fitted curves with intervals and saturation points out.

Forms, D = size: `constant` E; `power` E + A*D^-alpha, which falls with size; `saturating`
S_inf - (D/D0)^-s, which rises. Losses are fitted by the summed Huber loss on logs (Hoffmann et
al. 2022 with the sum, as Besiroglu et al. 2024 showed that the mean stops too early), all other
scores by least squares as they are, by variable projection: the exponent is searched, the
coefficients have a closed form. Every random draw comes from a fixed seed.
"""

import numpy as np
import pandas as pd
from scipy import optimize, stats

from scaling.analyse import trends
from scaling.analyse.trends import KEY, SEEDS, finite, pooled_residuals

FORMS = {"raw": ("constant", "power", "saturating"), "log": ("constant", "power")}
LOWER_IS_BETTER = ("loss", "repeat", "repeat_masked", "repeat_unmasked")
EXPONENTS = (0.02, 3.0)  # searched range of alpha and s; at its ends a flag is raised
HUBER_DELTA = 1e-3
MIN_SIZES = 4


def fit_table(rows: pd.DataFrame, size: str = "cells", draws: int = 500) -> list[dict]:
    """One fitted curve per (task, dataset, score, positions, read_from, model).

    Args:
      rows: the scores table, one row per score; floors and rows of size 0 have no curve.
      size: column of the size D, `cells` or `tokens`.
      draws: bootstrap refits behind each interval.
    Returns: JSON-serialisable dicts: the keys above and what `fit_curve` returns.
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
    for key, group in table.groupby(KEY, sort=True):
        scale = "log" if group["score"].iloc[0] == "loss" else "raw"
        try:
            fit = fit_curve(group[size], group["value"], scale=scale, draws=draws)
        except ValueError as error:
            raise ValueError(f"{dict(zip(KEY, key, strict=True))}: {error}") from error
        if scale == "raw" and group["score"].iloc[0] not in LOWER_IS_BETTER:
            fit["saturation"] = trends.saturation_point(group[size], group["value"])
        unconverged = int((group["converged"] == False).sum())  # noqa: E712 (None is neither)
        if unconverged:
            fit["flags"].append(f"{unconverged} of {len(group)} points from unconverged runs")
        if group.groupby(size)["exposures"].nunique().max() > 1:
            fit["flags"].append("several exposures at one size")
        fits.append(dict(zip(KEY, key, strict=True)) | {"size": size} | fit)
    return fits


def fit_curve(x, y, form: str | None = None, scale: str = "raw", draws: int = 500) -> dict:
    """Fit one curve; the form of least AICc is chosen where none is named.

    Args:
      x: sizes, shape (n,), > 0; a size recurs once per seed.
      y: scores, shape (n,); rows with NaN are dropped and counted.
      scale: "raw" (least squares) or "log" (Huber on log y, y > 0).
    Returns: dict with form (None and a `reason` below four sizes), parameters, intervals (95 %,
      None where none can be had), aicc, left_out_error (at the largest size, fitted without it,
      on `scale`), forms (the same for each form), flags, band (x, low, mid, high), sizes, means,
      points, dropped, saturation (filled by `fit_table`).
    """
    x, y, dropped = finite(x, y)
    if scale == "log" and (y <= 0).any():
        raise ValueError(
            f"{int((y <= 0).sum())} of {len(y)} losses are zero or negative, and the fit needs "
            "their logarithm; remove those runs or fit with scale='raw'"
        )
    sizes = np.unique(x)
    result = {
        "form": None, "reason": "", "parameters": {}, "intervals": {}, "aicc": None,
        "left_out_error": None, "forms": {}, "flags": [], "band": None, "scale": scale,
        "sizes": sizes.tolist(), "means": [float(y[x == s].mean()) for s in sizes],
        "points": len(y), "dropped": dropped, "saturation": None,
    }  # fmt: skip
    if dropped:
        result["flags"].append(f"{dropped} rows without a value dropped")
    if len(sizes) < MIN_SIZES:
        result["reason"] = f"{len(sizes)} distinct sizes with a value; a curve needs {MIN_SIZES}"
        return result
    target = np.log(y) if scale == "log" else y
    for name in FORMS[scale] if form is None else (form,):
        coefficients = _refit(name, scale, x, target[None])[0]
        result["forms"][name] = {
            "parameters": _named(name, scale, x, coefficients),
            "aicc": _aicc(target - _curve(name, scale, coefficients, x, x), len(coefficients)),
            "left_out_error": _left_out_error(name, scale, x, target),
        }
    judged = {k: np.inf if v["aicc"] is None else v["aicc"] for k, v in result["forms"].items()}
    best = min(judged, key=judged.get)
    result |= {"form": best} | result["forms"][best]
    _add_intervals(result, x, target, draws)
    return result


def _add_intervals(result: dict, x, target, draws: int) -> None:
    """Refit resampled data: the curve plus pooled residuals; adds intervals, band and flags."""
    form, scale, flags = result["form"], result["scale"], result["flags"]
    point = _refit(form, scale, x, target[None])[0]
    fitted = _curve(form, scale, point, x, x)
    grid = np.geomspace(x.min(), x.max(), 60)
    back = np.exp if scale == "log" else np.asarray
    middle = back(_curve(form, scale, point, grid, x))
    result["band"] = {"x": grid.tolist(), "low": None, "mid": middle.tolist(), "high": None}
    result["intervals"] = dict.fromkeys(result["parameters"])
    residuals, single = pooled_residuals(x, target, fitted, len(point))
    if single:
        flags.append("single seed: intervals over points")
    flags.extend(_bound_flags(form, scale, point))
    if residuals is None:
        flags.append("too few points for intervals")
        return
    picks = np.random.default_rng(0).integers(len(residuals), size=(draws, len(x)))
    refits = _refit(form, scale, x, fitted + residuals[picks], near=point)
    named = [_named(form, scale, x, row) for row in refits]
    for name in result["parameters"]:
        values = [np.inf if row[name] is None else row[name] for row in named]
        low, high = np.quantile(values, (0.025, 0.975), method="nearest")
        result["intervals"][name] = [_number(low), _number(high)]
    curves = back(np.stack([_curve(form, scale, row, grid, x) for row in refits]))
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    result["band"] |= {"low": low.tolist(), "high": high.tolist()}
    if len(point) == 3:
        low, high = np.quantile(refits[:, 2], (0.025, 0.975))
        if low <= EXPONENTS[0] * 1.01 or high >= EXPONENTS[1] * 0.99:
            exponent = "alpha" if form == "power" else "s"
            flags.append(f"{exponent} not identified: its interval reaches the searched range")
    if scale == "raw" and _poor_fit(x, target, fitted, len(point)):
        flags.append("poor fit: size means leave the curve by more than seeds explain")


def _poor_fit(x, y, fitted, coefficients: int) -> bool:
    """F test (1 %) of the misfit of the size means against the spread of the seeds."""
    sizes = np.unique(x)
    within = sum(((y[x == s] - y[x == s].mean()) ** 2).sum() for s in sizes)
    free, free_within = len(sizes) - coefficients, len(x) - len(sizes)
    if free < 1 or free_within < trends.MIN_FREEDOM or within < 1e-20:
        return False
    misfit = ((y - fitted) ** 2).sum() - within
    return bool(misfit / free > stats.f.ppf(0.99, free, free_within) * within / free_within)


def _refit(form: str, scale: str, x, targets, near=None) -> np.ndarray:
    """Coefficients (B, k) of B data sets `targets` (B, n); k is 1 or 3 (intercept, slope, power).

    Sizes are divided by their geometric mean, which keeps the three coefficients apart.
    """
    if scale == "log":
        return _huber_refits(form, np.log(x / _centre(x)), targets, near)
    if form == "constant":
        return targets.mean(axis=1, keepdims=True)
    sign = 1.0 if form == "power" else -1.0
    exponents = np.geomspace(*EXPONENTS, 120)[None]
    step = np.log(exponents[0, 1] / exponents[0, 0])
    for _ in range(6):  # the grid, then five finer ones about each best exponent
        coefficients = _project(x / _centre(x), targets, exponents, sign)
        finer = coefficients[:, 2:] * np.exp(np.linspace(-step, step, 21))
        exponents, step = np.clip(finer, *EXPONENTS), step / 10
    return coefficients


def _project(u, targets, exponents, sign: float) -> np.ndarray:
    """Best (intercept, slope >= 0, exponent) of B data sets over exponents (1 or B, G).

    Closed-form non-negative least squares in two coefficients. The intercept of a falling curve
    is held at or above 0 where all scores are, since it is the value that more data approach.
    """
    basis = sign * u ** -exponents[..., None]  # (1 or B, G, n)
    level = targets.mean(-1, keepdims=True)
    centred = basis - basis.mean(-1, keepdims=True)
    cross = (centred * targets[:, None]).sum(-1)
    slope = np.maximum(cross / (centred**2).sum(-1), 0.0)  # (B, G)
    intercept = level - slope * basis.mean(-1)
    if sign > 0 and targets.min() >= 0:
        through_zero = (basis * targets[:, None]).sum(-1) / (basis**2).sum(-1)
        slope = np.where(intercept < 0, through_zero, slope)
        intercept = np.maximum(intercept, 0.0)
    fitted = intercept[..., None] + slope[..., None] * basis
    best = ((targets[:, None] - fitted) ** 2).sum(-1).argmin(-1)
    each = np.arange(len(targets))
    powers = np.broadcast_to(exponents, slope.shape)
    return np.stack([intercept[each, best], slope[each, best], powers[each, best]], -1)


def _huber_refits(form: str, log_u, targets, near) -> np.ndarray:
    """As `_refit`, for log losses: summed Huber, many starts, reweighted Levenberg-Marquardt.

    Works on (log E, log A, alpha) with log y = logaddexp(log E, log A - alpha log u); the best
    start of a lone data set is polished with scipy's L-BFGS-B.
    """
    count, n = targets.shape
    if form == "constant":  # convex in one variable: bisect its falling derivative
        low, high = targets.min(-1), targets.max(-1)
        for _ in range(60):
            middle = (low + high) / 2
            rising = np.clip(targets - middle[:, None], -HUBER_DELTA, HUBER_DELTA).sum(-1) > 0
            low, high = np.where(rising, middle, low), np.where(rising, high, middle)
        return np.exp((low + high) / 2)[:, None]
    floor = targets.min() + np.log(1e-4)
    lower, upper = np.array([floor, floor, EXPONENTS[0]]), np.array([50.0, 50.0, EXPONENTS[1]])
    starts = [
        (targets.min() + np.log(share), targets.max() + np.log(1.001 - share), alpha)
        for share in (0.01, 0.5, 0.9, 0.99) for alpha in (0.05, 0.15, 0.3, 0.6, 1.0, 2.0)
    ]  # fmt: skip
    if near is not None:
        point = np.log(np.maximum(near[:2], np.exp(floor)))
        starts = [(*point, near[2]), *starts[8::6]]
    state = np.clip(np.tile(starts, (count, 1)), lower, upper)  # (B * S, 3)
    goal = np.repeat(targets, len(starts), axis=0)
    damping, loss = np.full(len(goal), 1e-2), _huber(goal - _log_power(state, log_u)[0])
    for _ in range(60):
        fitted, jacobian = _log_power(state, log_u)
        residual = goal - fitted
        weighted = jacobian / np.maximum(np.abs(residual), HUBER_DELTA)[..., None]
        normal = np.einsum("bni,bnj->bij", weighted, jacobian)
        normal += damping[:, None, None] * (normal * np.eye(3) + 1e-9 * np.eye(3))
        gradient = np.einsum("bni,bn->bi", weighted, residual)
        step = np.linalg.solve(normal, gradient[..., None])[..., 0]
        trial = np.clip(state + step, lower, upper)
        trial_loss = _huber(goal - _log_power(trial, log_u)[0])
        better = trial_loss < loss
        state = np.where(better[:, None], trial, state)
        loss = np.where(better, trial_loss, loss)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-8, 1e8)
    best = loss.reshape(count, -1).argmin(-1)
    state = state.reshape(count, -1, 3)[np.arange(count), best]
    if count == 1:
        polished = optimize.minimize(
            lambda p: _huber(targets[0] - _log_power(p[None], log_u)[0][0]),
            state[0], method="Nelder-Mead", bounds=list(zip(lower, upper, strict=True)),
            options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000},
        )  # fmt: skip
        state = polished.x[None]
    return np.column_stack([np.exp(state[:, :2]), state[:, 2]])


def _log_power(state, log_u):
    """Log of E + A*u^-alpha at (B, 3) states: values (B, n) and derivatives (B, n, 3)."""
    falling = state[:, 1:2] - state[:, 2:] * log_u
    value = np.logaddexp(state[:, :1], falling)
    share = np.exp(falling - value)
    return value, np.stack([1 - share, share, -share * log_u], -1)


def _huber(residual):
    size = np.abs(residual)
    inside = np.minimum(size, HUBER_DELTA)
    return (inside * (size - inside / 2)).sum(-1)


def _curve(form: str, scale: str, coefficients, at, x) -> np.ndarray:
    """The curve on its own scale (log for losses) at sizes `at`; `x` are the fitted sizes."""
    if form == "constant":
        value = np.full(len(at), coefficients[0])
    else:
        intercept, slope, exponent = coefficients
        sign = 1.0 if form == "power" else -1.0
        value = intercept + sign * slope * (at / _centre(x)) ** -exponent
    return np.log(value) if scale == "log" else value


def _named(form: str, scale: str, x, coefficients) -> dict:
    """Published names of the coefficients; None where a number leaves the float range."""
    if form == "constant":
        return {"E": _number(coefficients[0])}
    intercept, slope, exponent = coefficients
    with np.errstate(over="ignore"):
        if form == "power":
            values = {"E": intercept, "A": slope * _centre(x) ** exponent, "alpha": exponent}
        else:  # (D/D0)^-s = slope * (D/centre)^-s
            onset = _centre(x) * np.float64(slope) ** (1 / exponent)
            values = {"S_inf": intercept, "D0": onset, "s": exponent}
    return {name: _number(value) for name, value in values.items()}


def _bound_flags(form: str, scale: str, point) -> list[str]:
    """Words for each coefficient that sits on the end of its range."""
    if form == "constant":
        return []
    flags, (intercept, slope, exponent) = [], point
    name, factor = ("alpha", "A") if form == "power" else ("s", "D0")
    if exponent <= EXPONENTS[0] * 1.001:
        flags.append(f"{name} on its lower bound {EXPONENTS[0]}: straight in log size, no plateau")
    if exponent >= EXPONENTS[1] * 0.999:
        flags.append(f"{name} on its upper bound {EXPONENTS[1]}: only the smallest size differs")
    if slope <= 0:
        flags.append(f"{factor} on its bound 0: no trend of this form's direction")
    if form == "power" and intercept <= (slope * 1e-3 if scale == "log" else 0.0):
        flags.append("E on its bound 0: no floor in sight")
    if form == "saturating" and intercept > 1:
        flags.append("S_inf above 1, beyond the score's range: the plateau is not in sight")
    return flags


def _aicc(residuals, coefficients: int) -> float | None:
    """Corrected Akaike criterion from the Gaussian likelihood, its variance counted too."""
    n, k = len(residuals), coefficients + 1
    if n - k - 1 <= 0:
        return None
    variance = max(float((residuals**2).mean()), 1e-24)  # an exact fit must not be minus infinity
    return float(n * np.log(variance) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _left_out_error(form: str, scale: str, x, target) -> float:
    """|prediction - mean score| at the largest size, fitted to the smaller ones; on `scale`."""
    largest, kept = x == x.max(), x < x.max()
    point = _refit(form, scale, x[kept], target[None, kept])[0]
    predicted = _curve(form, scale, point, x[largest][:1], x[kept])[0]
    return float(abs(predicted - target[largest].mean()))


def _centre(x) -> float:
    return float(np.exp(np.log(np.unique(x)).mean()))


def _number(value) -> float | None:
    return float(value) if np.isfinite(value) else None
