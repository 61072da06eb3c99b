"""The scores table in; trends over size, differences and saturation points with intervals out.

The intervals come from one bootstrap: seed averages per size plus pooled residuals within sizes,
rescaled for the few seeds they rest on, drawn from a fixed seed.
"""

import numpy as np
import pandas as pd
from scipy import stats

KEY = ["task", "dataset", "score", "positions", "read_from", "model"]
SEEDS = ["subset_seed", "init_seed", "mask_seed"]
MIN_FREEDOM = 4  # fewer residual degrees of freedom give no interval one could lean on


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """The scores table with float `value` (None becomes NaN) and "" for absent text keys.

    Scores of subsets that are not random are told apart by the name of their data set, so that no
    curve, difference or claim mixes schemes: "kang (sketch subsets)". Rows without a scheme, such
    as those of untrained models, stand beside each. Scores of a part of the cells (a class, a share
    of noise; column `of`) are left out: a curve is of all.
    """
    needed = {*KEY, *SEEDS, "kind", "cells", "tokens", "exposures", "value", "converged", "note"}
    if missing := sorted(needed - set(rows.columns)):
        raise ValueError(f"the scores table lacks the columns {missing}; one row is one score")
    table = rows.reset_index(drop=True).copy()
    if "of" in table:
        table = table[table["of"].fillna("") == ""].reset_index(drop=True)
    for column in ("dataset", "positions", "read_from", "note"):
        table[column] = table[column].astype(object).where(table[column].notna(), "")
    for column in ("value", "cells", "tokens", "exposures", *SEEDS):
        table[column] = pd.to_numeric(table[column]).astype(float)
    table = _by_scheme(table)
    if np.isinf(table["value"]).any():
        raise ValueError("the scores table holds infinite values; leave those rows out")
    # A table that was joined with itself holds no more evidence than once.
    return table.drop_duplicates([*KEY, *SEEDS, "cells", "exposures", "value"], ignore_index=True)


def _by_scheme(table: pd.DataFrame) -> pd.DataFrame:
    given = table["scheme"].dropna() if "scheme" in table else pd.Series("random", table.index)
    schemes = sorted(set(given)) or ["random"]
    parts = []
    for scheme in schemes:
        mine = table.index.isin(given.index[given == scheme]) | ~table.index.isin(given.index)
        part, suffix = table[mine].assign(scheme=scheme), f" ({scheme} subsets)"
        if scheme != "random":  # a table that was tidied before has the suffix
            part["dataset"] = [f"{name.removesuffix(suffix)}{suffix}" for name in part["dataset"]]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def trend(x, y, level: float = 0.95) -> dict:
    """Straight line of the seed-averaged score against log10 size.

    Returns: {slope: per tenfold size, interval, mean: over sizes, mean_interval, sizes, means,
    per_size: an interval for each size, points}; intervals are None where seeds are too few, and
    the slope is None below two sizes. Differences between two curves go through here as well.
    """
    sizes, means, resampled = size_mean_draws(x, y, level)
    result = {
        "slope": None, "interval": None, "mean": float(means.mean()) if len(means) else None,
        "mean_interval": None, "sizes": sizes.tolist(), "means": means.tolist(),
        "per_size": [None] * len(sizes), "points": int(np.isfinite(np.asarray(y, float)).sum()),
    }  # fmt: skip
    ends = ((1 - level) / 2, (1 + level) / 2)
    if resampled is not None:
        result["mean_interval"] = np.quantile(resampled.mean(1), ends).tolist()
        result["per_size"] = np.quantile(resampled, ends, axis=0).T.tolist()
    if len(sizes) >= 2:
        decades = np.log10(sizes) - np.log10(sizes).mean()
        weights = decades / (decades**2).sum()
        result["slope"] = float(means @ weights)
        if resampled is not None:
            result["interval"] = np.quantile(resampled @ weights, ends).tolist()
    return result


def difference(
    one: pd.DataFrame, other: pd.DataFrame, size: str = "cells", level: float = 0.95
) -> dict:
    """Trend of `one` minus `other` (tables of one score), paired by run.

    The slope is the interaction: by how much the two scores part per tenfold size. A pair agrees
    in size, exposures and all three seeds; rows without a partner are left out.
    """
    pairs = one.merge(other, on=[size, "exposures", *SEEDS], suffixes=("_one", "_other"))
    return trend(pairs[size], pairs["value_one"] - pairs["value_other"], level)


def saturation_point(x, y) -> dict | None:
    """Smallest size whose seed-averaged score exceeds 95 % of the largest (DenAdel et al.).

    Returns: {size, interval (or None), at_most: the smallest size already passes, at_least: only
    the largest does, so that more data might go on raising the score}; None where no mean is
    positive. Not defined for losses and other scores of which less is better.
    """
    sizes, means, resampled = size_mean_draws(x, y)
    if not len(means) or means.max() <= 0:
        return None

    def first(scores):
        return sizes[(scores > 0.95 * scores.max(-1, keepdims=True)).argmax(-1)]

    point, interval = float(first(means)), None
    if resampled is not None and (resampled.max(-1) > 0).all():
        ends = np.quantile(first(resampled), (0.025, 0.975), method="nearest")
        interval = [float(end) for end in ends]
    return {"size": point, "interval": interval, "at_most": bool(point == sizes[0]),
            "at_least": bool(point == sizes[-1] > sizes[0])}  # fmt: skip


def size_mean_draws(x, y, level: float = 0.95, draws: int = 4000):
    """Seed-averaged scores per size and their bootstrap.

    Returns: (sizes (S,), means (S,), resampled means (draws, S) or None below `MIN_FREEDOM`
    residual degrees of freedom). With one seed per size, residuals are those about a straight
    line in log size. Residuals are widened by Student's t over the normal quantile at `level`:
    without it a flat score of 4 sizes x 3 seeds is called a trend in 8 % of cases, not in 5 %.
    """
    x, y, _ = finite(x, y)
    sizes, index, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(index, y) / counts
    repeated = len(x) > len(sizes)
    free = len(x) - (len(sizes) if repeated else 2)
    if free < MIN_FREEDOM:
        return sizes, means, None
    line = means[index] if repeated else np.polyval(np.polyfit(np.log(x), y, 1), np.log(x))
    residuals, _ = pooled_residuals(x, y, line, 2)
    tail = (1 + level) / 2
    residuals = residuals * stats.t.ppf(tail, free) / stats.norm.ppf(tail)
    picks = np.random.default_rng(0).integers(len(residuals), size=(draws, len(x)))
    averaging = (index[:, None] == np.arange(len(sizes))) / counts
    return sizes, means, means + residuals[picks] @ averaging


def pooled_residuals(x, y, fitted, coefficients: int):
    """(residuals pooled over sizes, single seed?): about the size means, times sqrt(n/(n-1)).

    Below ten seeds a size's own resampled seeds spread too little; pooled and rescaled they hold
    their level. With one seed per size: about the curve, times sqrt(n/(n-k)). None where none.
    """
    pools = [y[x == size] for size in np.unique(x)]
    parts = [(p - p.mean()) * np.sqrt(len(p) / (len(p) - 1)) for p in pools if len(p) > 1]
    if parts:
        pooled = np.concatenate(parts)
        return (pooled if len(pooled) - len(parts) >= 2 else None), False
    free = len(y) - coefficients
    return ((y - fitted) * np.sqrt(len(y) / free) if free >= 2 else None), True


def finite(x, y, *more):
    """Float arrays without the rows whose score is NaN, and how many those were; more sizes."""
    x, y, *more = (np.asarray(values, float) for values in (x, y, *more))
    for sizes in (x, *more):
        if sizes.shape != y.shape or y.ndim != 1:
            raise ValueError(
                f"sizes {sizes.shape} and scores {y.shape} must be two lists of one length"
            )
        if (sizes <= 0).any() or not np.isfinite(sizes).all():
            raise ValueError("every size must be a positive number; drop the rows of size 0")
    keep = np.isfinite(y)
    return x[keep], y[keep], int((~keep).sum()), *[sizes[keep] for sizes in more]
