"""Fitted curves, or scores of many tasks, in; differences and mean ranks with intervals out."""

import itertools

import numpy as np
import pandas as pd

from scaling.analyse import cautions, intervals
from scaling.analyse.fits import cells_of
from scaling.analyse.forms import columns_of, named
from scaling.analyse.refits import refit
from scaling.analyse.trends import KEY, finite, size_mean_draws, tidy

# Whose curves are compared in a report; every pair takes seconds.
SCORES = ("loss", "accuracy", "logistic_macro_f1", "avg_bio", "average_batch_score")
WHAT = {"alpha": "exponent", "s": "exponent", "beta": "exponent", "E": "offset", "S_inf": "offset",
        "log10_saturation": "saturation"}  # fmt: skip


def differences(curves: dict, found: dict, scale: str, draws: int = 1000) -> list[dict]:
    """Each pair of curves, the second minus the first, in one form for both.

    Both are fitted with the form of least summed AICc among those fitted to each, and resampled
    independently; seeds that two curves share are not paired, which widens the intervals. Two flat
    curves, both best told by a constant, differ in their offset alone.
    Args: curves: {name: (x, y, x2 or None)}; found: {name: what `fit_curve` returned}.
    Returns: [{one, other, form, parameters: {name: {what, value, interval, identified}}}]; what is
      "exponent", "offset", "saturation" (the size at which 95 % of S_inf is reached, as its
      logarithm to base 10) or "coefficient". Not identified: of either curve, the bootstrap's
      interval reaches the end of the searched range, so that the difference says nothing.
    """
    results = []
    for one, other in itertools.combinations(curves, 2):
        shared = set(found[one]["forms"]) & set(found[other]["forms"])
        scores = {
            form: sum(np.inf if (a := found[n]["forms"][form]["aicc"]) is None else a
                      for n in (one, other))
            for form in sorted(shared)
        }  # fmt: skip
        form = min(scores, key=scores.get)
        (first, lost), (second, lost_too) = (_draws(form, scale, *curves[name], draws, i)
                                             for i, name in enumerate((one, other)))  # fmt: skip
        parameters = {}
        for name in first:
            with np.errstate(invalid="ignore"):  # of two that are infinite
                gap = second[name] - first[name]
                ends = np.quantile(gap[1:], intervals.ENDS).tolist() if len(gap) > 1 else None
            parameters[name] = {
                "what": WHAT.get(name, "coefficient"), "value": float(gap[0]), "interval": ends,
                "identified": name not in lost | lost_too,
            }  # fmt: skip
        results.append({"one": one, "other": other, "form": form, "parameters": parameters})
    return results


def from_mlm(rows: pd.DataFrame, fits: list[dict], draws: int = 500) -> list[dict]:
    """How the curve of each other trained model differs from that of mlm, for each of SCORES.

    Args:
      rows: the scores table.
      fits: what `fits.fit_table` made of it, over unique cells.
    Returns: for each pair the keys of the scores, without the model's, and what `differences`
      tells; none where mlm, or the other, has no curve. Of masked genes, at `<mask>` positions.
    """
    table = tidy(rows)
    table = table[(table["kind"] == "pretrained") & (table["cells"] > 0)]
    table = table[table["score"].isin(SCORES)]
    same, results = [name for name in KEY if name != "model"], []
    by_key = {tuple(fit[name] for name in KEY): fit for fit in fits if fit["form"]}
    for key, group in table[table["positions"].isin(["mask", ""])].groupby(same):
        curves = {
            model: (of["cells"], of["value"], None) for model, of in group.groupby("model")
            if (*key, model) in by_key
        }  # fmt: skip
        for other in sorted(set(curves) - {"mlm"}) if "mlm" in curves else ():
            pair = {name: curves[name] for name in ("mlm", other)}
            found = {name: by_key[*key, name] for name in pair}
            [gap] = differences(pair, found, found["mlm"]["scale"], draws)
            gap["parameters"] = {n: of for n, of in gap["parameters"].items() if _told(of)}
            results.append(dict(zip(same, key, strict=True)) | gap)
    return results


def _told(gap: dict) -> bool:
    return bool(np.isfinite([gap["value"], *(gap["interval"] or ())]).all())


def _draws(form, scale, x, y, x2, draws, seed) -> tuple[dict[str, np.ndarray], set[str]]:
    """The point estimate, then its bootstrap, of each coefficient; those not identified."""
    x, y, _, *second = finite(x, y, *([] if x2 is None else [x2]))
    x2 = second[0] if second else None
    columns, centres = columns_of(form, x, x2)
    target = np.log(y) if scale == "log" else y
    point = refit(form, scale, columns, target[None])[0]
    given = columns, cells_of(x, x2), target, point[0]
    drawn = intervals.bootstrap(form, scale, *given, draws, seed)
    points = point if drawn["points"] is None else np.concatenate([point, drawn["points"]])
    values = named(form, points, centres)
    if form == "saturating":  # (D/D0)^-s = 0.05 S_inf
        top = np.maximum(0.05 * values["S_inf"], 1e-12)
        with np.errstate(divide="ignore"):  # a D0 on its bound
            values["log10_saturation"] = np.log10(values["D0"]) - np.log10(top) / values["s"]
    lost = set(cautions.unidentified(form, points[1:], columns)) if len(points) > 1 else set()
    if "s" in lost:
        lost |= {"D0", "log10_saturation"}
    return values, lost


def rank_table(scores: pd.DataFrame, draws: int = 4000) -> pd.DataFrame:
    """Ranks of models on each task and their mean, 1 = best, with 95 % intervals.

    Args: scores: columns model, task, value (more is better), one row per seed.
    Returns: index model; a column of ranks per task, then mean, low, high (NaN where seeds are too
      few). Seeds' residuals, pooled over the models of a task, are drawn anew; the tasks stay.
    Raises: ValueError where a model lacks a task.
    """
    models = sorted(scores["model"].unique())
    means, drawn = {}, {}
    for task, rows in scores.groupby("task"):
        codes = rows["model"].map({name: i + 1.0 for i, name in enumerate(models)})
        numbers, task_means, resampled = size_mean_draws(codes, rows["value"], draws=draws)
        if len(numbers) < len(models):
            lacking = sorted(set(models) - {models[int(i) - 1] for i in numbers})
            raise ValueError(f"task {task} has no score of {lacking}; a rank needs all models")
        means[task] = task_means
        if resampled is not None:
            drawn[task] = np.random.default_rng(len(drawn)).permutation(resampled)
    table = pd.DataFrame(means, index=models).rank(ascending=False)
    mean = table.mean(axis=1)
    low = high = np.full(len(models), np.nan)
    if len(drawn) == len(means):
        ranks = [pd.DataFrame(d).rank(axis=1, ascending=False).to_numpy() for d in drawn.values()]
        low, high = np.quantile(np.mean(ranks, axis=0), intervals.ENDS, axis=0)
    return table.assign(mean=mean, low=low, high=high)
