"""One fitted curve in; bootstrap refits of it and profile-likelihood intervals out.

The bootstrap draws pooled residuals about the size means, rescaled for the few seeds they rest on
(trends.pooled_residuals), and widened by Student's t over the normal quantile, since their spread
is itself estimated from few points. Every draw comes from a fixed seed.
"""

import numpy as np
from scipy import stats

from scaling.analyse.forms import FORMS, bounds, curve, named, searched_point
from scaling.analyse.refits import constrained, refit
from scaling.analyse.search import HUBER_DELTA, huber
from scaling.analyse.trends import pooled_residuals

PROFILED = 12  # values at which a parameter is held, on either side of its estimate
ENDS = (0.025, 0.975)


def bootstrap(form, scale, columns, cells, target, point, draws: int, seed: int = 0):
    """Refit the curve plus resampled residuals.

    Args: cells: a number for each row (n,), equal where the sizes are.
    Returns: dict with points (draws, k), excess (the mean by which the loss of a draw at the curve
      it was drawn from exceeds its least), free (degrees of freedom of the residuals) and single
      (whether they are about the curve); points is None where there are too few rows.
    """
    fitted = curve(form, scale, point, columns)
    residuals, single = pooled_residuals(cells, target, fitted, len(point))
    if residuals is None:
        return {"points": None, "single": single}
    free = len(target) - (len(point) if single else len(np.unique(cells)))
    widened = residuals * stats.t.ppf(ENDS[1], free) / stats.norm.ppf(ENDS[1])
    picks = np.random.default_rng(seed).integers(len(residuals), size=(draws, len(target)))
    points, losses = refit(form, scale, columns, fitted + widened[picks], near=point)
    drawn = widened[picks]
    at_truth = huber(drawn, HUBER_DELTA if scale == "log" else np.inf, np)
    excess = float(np.maximum(at_truth - losses, 0).mean())
    return {"points": points, "excess": excess, "free": free, "single": single}


def percentiles(form, points, centres) -> dict[str, list[float]]:
    """95 % intervals of the published coefficients from bootstrap refits (draws, k)."""
    values = named(form, points, centres)
    return {name: np.quantile(v, ENDS, method="nearest").tolist() for name, v in values.items()}


@np.errstate(divide="ignore", over="ignore", invalid="ignore")  # a slope of 0 has no logarithm
def profiles(form, scale, columns, centres, target, point, loss: float, drawn: dict) -> dict:
    """95 % profile-likelihood intervals: a coefficient is held, all others are fitted again.

    An interval ends where the least loss exceeds that of the fit by its mean excess in the
    bootstrap for each coefficient, times the normal quantile squared; for least squares that is
    the likelihood-ratio interval with Student's t, and for Huber it needs no density at zero.
    Args: drawn: what `bootstrap` returns; its draws also start the fits.
    Returns: {name: [low, high]}; an end that no value tried reaches is None.
    """
    best = {name: float(v) for name, v in named(form, point, centres).items()}
    values = named(form, drawn["points"], centres)
    allowed = drawn["excess"] / len(point) * stats.norm.ppf(ENDS[1]) ** 2
    batches, held = [], {}
    for name in best:
        to, back = _scale_of(form, scale, name)
        at, draws = to(best[name]), to(values[name])
        if not np.isfinite(at) or not np.isfinite(draws).any():
            continue
        low, high = np.quantile(draws[np.isfinite(draws)], (0.01, 0.99))
        reach = 2.5 * np.array([min(low - at, -1e-9), max(high - at, 1e-9)])
        steps = np.linspace(0, 1, PROFILED + 1)
        tried = at + np.concatenate([reach[0] * steps[:0:-1], reach[1] * steps])
        if name in FORMS[form].searched:
            index = FORMS[form].searched.index(name)
            unit = np.log(centres[0]) if name == "D0" else 0.0
            tried = np.clip(tried, *(end[index] + unit for end in bounds(form, columns)))
        held[name] = back(tried)
        near = np.nan_to_num(np.abs(draws - tried[:, None]), nan=np.inf).argmin(1)
        batches.append(_held(form, scale, columns, centres, target, best, values, name, held[name],
                             near))  # fmt: skip
    if not batches:
        return dict.fromkeys(best)
    designs, *others = (np.concatenate(part) for part in zip(*batches, strict=True))
    over = constrained(form, scale, designs, target, *others) - loss
    found = dict.fromkeys(best)
    for name, excess in zip(held, over.reshape(len(held), -1), strict=True):
        found[name] = _crossings(held[name], np.sqrt(np.maximum(excess, 0)), np.sqrt(allowed))
    return found


def _scale_of(form, scale, name):
    if name == FORMS[form].names[0] and scale == "raw":
        return np.asarray, np.asarray
    return np.log, np.exp


def _held(form, scale, columns, centres, target, best, values, name, tried, near):
    """Designs, starts and bounds of fits that hold `name` at each of the values tried (Q,)."""
    of, count = FORMS[form], len(tried)
    at = np.tile(centres, (count, 1))
    if name == "A":  # in units of the sizes the coefficient itself is a coordinate
        at[:, -1 if form == "two_variables" else 0] = 1.0
    elif name == "B":
        at[:, 0] = 1.0
    elif form == "saturating" and name == "D0":
        at[:, 0] = tried
    moved = np.log(centres) - np.log(at)  # (Q, c)
    starts = np.stack(
        [searched_point(form, {k: np.full(count, v) for k, v in best.items()} | {name: tried}, at),
         searched_point(form, {k: v[near] for k, v in values.items()} | {name: tried}, at)], 1,
    )  # fmt: skip
    low, high = (np.tile(end, (count, 1)) for end in bounds(form, columns))
    if form == "broken":
        low[:, 2] += moved[:, 0]
        high[:, 2] += moved[:, 0]
    if scale == "log":
        starts[..., 0] = np.log(np.maximum(starts[..., 0], 1e-300))
        intercept = target.min() + np.array([np.log(1e-4), 50.0])
    else:
        intercept = np.array([0.0 if of.falls and target.min() >= 0 else -np.inf, np.inf])
    slopes = np.full((count, of.slopes), 700.0)
    lower = np.concatenate([np.full((count, 1), intercept[0]), -slopes, low], 1)
    upper = np.concatenate([np.full((count, 1), intercept[1]), slopes, high], 1)
    index = of.names.index(name)
    fixed = starts[:, :1, index]
    lower[:, index : index + 1] = upper[:, index : index + 1] = fixed
    return columns + moved[..., None], np.nan_to_num(starts), lower, upper


def _crossings(tried, rise, allowed) -> list[float | None]:
    """Where the rise passes what is allowed, below and above its middle; None where it does not."""
    middle, ends = len(tried) // 2, []
    for order in (np.arange(middle, -1, -1), np.arange(middle, len(tried))):
        beyond = np.flatnonzero(rise[order] > allowed)
        if not len(beyond):
            ends.append(None)
            continue
        inner, outer = order[beyond[0] - 1], order[beyond[0]]
        share = (allowed - rise[inner]) / (rise[outer] - rise[inner]) if beyond[0] else 0.0
        ends.append(float(tried[inner] + share * (tried[outer] - tried[inner])))
    return ends
