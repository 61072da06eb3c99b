"""A fitted classifier + test cells -> its scores as counts are noised or thinned; their picture.

Weights and probe stay as fitted on clean training cells; only the counts of test cells change,
before anything is computed from them.
"""

import os
import pathlib
import warnings
from collections.abc import Callable

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scaling.corpus import subsets
from scaling.evaluate.intervals import Bootstrap, NotScoredError, Score
from scaling.evaluate.noisy_counts import Cells, add_noise, thin

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8)  # of the cells noised
KEPT = (1.0, 0.5, 0.2, 0.1, 0.05)  # of each cell's counts
CHUNK_CELLS = 256  # noised at a time, with a value for each gene
ITERATIONS = 5_000
# Okabe-Ito colours: apart for the colour-blind; markers keep the lines apart in grey.
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F"
MARKERS = "os^Dv<>P"
PANELS = {"accuracy": "Accuracy (share of cells)", "macro_f1": "Macro-F1 (mean over cell types)"}

Represent = Callable[[sparse.csr_matrix, np.ndarray], np.ndarray]
Classify = Callable[[sparse.csr_matrix, np.ndarray], np.ndarray]


def fit_probe(
    represent: Represent, cells: Cells, probe: ClassifierMixin | None = None
) -> Classify:
    """Fits a probe to the representation of clean training cells.

    Args:
      represent: counts and totals -> float [N, D], of each cell by itself.
      cells: training cells.
      probe: unfitted; None: logistic regression (L2, C = 1) on standardised features.

    Returns:
      A function of counts and totals that names each cell. A cell whose representation is not
      finite, as of one without a gene of the vocabulary, is named "", which is an error.

    Raises:
      ValueError: fewer than two classes.
      NotScoredError: the probe did not converge.
    """
    cells = cells[np.flatnonzero(cells.labels != "")]
    if len(set(cells.labels)) < 2:
        raise ValueError(
            f"{len(set(cells.labels))} class(es) in {len(cells.labels)} labelled training cells; "
            "a probe needs two: choose other cells"
        )
    probe = probe or make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    train_NxD = np.asarray(represent(cells.counts, cells.total), np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            probe.fit(train_NxD, cells.labels)
        except ConvergenceWarning as unfinished:
            raise NotScoredError(
                f"the probe did not converge on {train_NxD.shape[0]} cells x {train_NxD.shape[1]} "
                "features; look for features of extreme scale"
            ) from unfinished

    def classify(counts_NxG: sparse.csr_matrix, total_N: np.ndarray) -> np.ndarray:
        x_NxD = np.asarray(represent(counts_NxG, total_N), np.float64)
        finite_N = np.isfinite(x_NxD).all(1)
        names = np.full(len(x_NxD), "", object)
        if finite_N.any():
            names[finite_N] = probe.predict(x_NxD[finite_N])
        return names.astype(str)

    return classify


def gaussian(
    classify: Classify,
    cells: Cells,
    *,
    shares: tuple[float, ...] = SHARES,
    only: str = "",
    seed: int = 0,
    split: str = "",
) -> list[Score]:
    """Scores against the share of test cells that are noised (Atti & Subramaniam 2025).

    The noise's SD is the median of these cells' non-zero counts; see `add_noise`. The cells noised
    at a smaller share are among those of a larger one: round(share * cells), in hashed order.

    Args:
      classify: counts and totals -> a name per cell, of each cell by itself; called on some
        hundred cells at a time, whose counts are no integers.
      cells: test cells.
      shares: from 0 to 1.
      only: noises cells of this class alone; a share is then of them, scores are of all cells.
      seed: of noise, order and resamples.
      split: how cells were divided, for the table.

    Returns:
      For each share, named in `of` as "20 % of cells noised": accuracy; macro_f1 over the classes
      of the test cells; accuracy_drop and macro_f1_drop, clean minus noised on the same resamples;
      and of each class, as "20 % of cells noised, B", predicted_minus_true, in shares of all cells.

    Raises:
      ValueError: a share outside 0 to 1, no labelled cell, or no cell of `only`.
    """
    cells = _labelled(cells, shares)
    chosen = np.flatnonzero(cells.labels == only) if only else np.arange(len(cells.labels))
    if not len(chosen):
        raise ValueError(f"no test cell is {only!r}; they are {sorted(set(cells.labels))}")
    positive = cells.counts.data[cells.counts.data > 0]
    sd = float(np.median(positive)) if positive.size else 0.0
    order = chosen[subsets.order(cells.ids[chosen], seed)]
    order = order[: round(max(shares) * len(chosen))]
    clean = _classified(classify, lambda part: (part.counts, part.total), cells, "clean")
    noised = _classified(
        classify, lambda part: add_noise(part, sd=sd, seed=seed), cells[order], "noised"
    )
    predicted = {}
    for share in shares:
        first = round(share * len(chosen))
        names = clean.astype(object)
        names[order[:first]] = noised[:first]
        predicted[f"{100 * share:g} % of {only or 'cells'} noised"] = names.astype(str)
    note = f"Gaussian noise, SD {sd:g}, added to all {cells.counts.shape[1]:,} genes; "
    return _scores(clean, predicted, cells, seed, split, note + "negatives cut to 0")


def thinning(
    classify: Classify,
    cells: Cells,
    *,
    kept: tuple[float, ...] = KEPT,
    seed: int = 0,
    split: str = "",
) -> list[Score]:
    """Scores against the share of every test cell's counts that is kept; see `thin`.

    Args and errors as for `gaussian`; `kept` are the shares.

    Returns:
      The scores of `gaussian`, named in `of` as "20 % of counts kept".
    """
    cells = _labelled(cells, kept)
    clean = _classified(classify, lambda part: (part.counts, part.total), cells, "clean")
    predicted = {
        f"{100 * share:g} % of counts kept": clean if share == 1 else _classified(
            classify, lambda part, share=share: thin(part, kept=share, seed=seed), cells,
            f"{100 * share:g} % of counts",
        )
        for share in kept
    }  # fmt: skip
    return _scores(clean, predicted, cells, seed, split, "binomial thinning of all test cells")


def _labelled(cells: Cells, shares: tuple[float, ...]) -> Cells:
    if not shares or min(shares) < 0 or max(shares) > 1:
        raise ValueError(f"shares {shares}: give numbers from 0 to 1")
    labelled = np.flatnonzero(cells.labels != "")
    if not len(labelled):
        raise ValueError(f"none of {len(cells.labels)} test cells has a label: choose other cells")
    return cells[labelled]


def _classified(classify: Classify, change: Callable, cells: Cells, desc: str) -> np.ndarray:
    names = [np.array([], str)]
    starts = range(0, len(cells.ids), CHUNK_CELLS)
    for start in tqdm(starts, f"{desc} cells", leave=False):
        part = cells[np.arange(start, min(start + CHUNK_CELLS, len(cells.ids)))]
        names.append(np.asarray(classify(*change(part)), str))
    return np.concatenate(names)


def _scores(clean, predicted: dict, cells: Cells, seed: int, split: str, note: str) -> list[Score]:
    truth = cells.labels
    draw = Bootstrap(len(truth), cells.donors, seed=seed)
    f1_clean, scores = _macro_f1(truth, clean), []
    classes = sorted(set(truth).union(clean, *predicted.values()) - {""})
    for of, names in predicted.items():
        said = {"of": of, "split": split, "note": note}
        right, was_right = (names == truth).astype(float), (clean == truth).astype(float)
        f1 = _macro_f1(truth, names)
        scores += [
            draw.mean("accuracy", right, **said),
            draw.score("macro_f1", f1, **said),
            draw.mean("accuracy_drop", was_right - right, **said),
            draw.score("macro_f1_drop", lambda w, f1=f1: f1_clean(w) - f1(w), **said),
        ]
        for name in classes:
            excess = (names == name).astype(float) - (truth == name)
            said["of"] = f"{of}, {name}"
            scores.append(draw.mean("predicted_minus_true", excess, **said))
    return scores


def _macro_f1(truth: np.ndarray, names: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """F1 averaged over the true classes that a resample holds, of how often each cell counts."""
    classes = np.unique(truth)
    true_NxC, named_NxC = (x[:, None] == classes for x in (truth, names))
    hits_NxC, both_NxC = true_NxC & named_NxC, true_NxC.astype(float) + named_NxC

    def statistic(weights_SxN: np.ndarray) -> np.ndarray:
        present_SxC = weights_SxN @ true_NxC > 0
        both_SxC = np.where(present_SxC, weights_SxN @ both_NxC, 1.0)
        return (2 * (weights_SxN @ hits_NxC) / both_SxC).sum(1) / present_SxC.sum(1)

    return statistic


def draw(
    results: dict[str, list[Score]], path: pathlib.Path, *, title: str, band: str = "95 % interval"
) -> None:
    """Accuracy and macro-F1 against the share of cells noised or of counts kept, with bands.

    Args:
      results: by model's name, scores of `gaussian` or of `thinning`, not of both; up to 8 models.
      path: of the PNG; replaced at once, when it is finished.
      title: of the figure.
      band: what the bands are.

    Raises:
      ValueError: no scores, scores of both kinds, or more models than there are colours.
    """
    rows = [s for scores in results.values() for s in scores if s.name in PANELS]
    kinds = sorted({score.of.partition(" % of ")[2] for score in rows})
    if len(kinds) != 1 or len(results) > len(COLOURS):
        raise ValueError(
            f"scores of {len(results)} models against {kinds or 'nothing'}: give those of one "
            f"question, of at most {len(COLOURS)} models"
        )
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.1), layout="constrained")
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        for model, colour, marker in zip(results, COLOURS, MARKERS, strict=False):
            rows = [s for s in results[model] if s.name == name and s.value is not None]
            rows.sort(key=lambda s: float(s.of.split(" ")[0]))
            x, value, low, high = np.array(
                [(float(s.of.split(" ")[0]), s.value, s.low, s.high) for s in rows], float
            ).T
            axis.plot(x, value, color=colour, marker=marker, ms=5, lw=1.6, label=model)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        axis.set_xlabel(f"% of {kinds[0]}")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.25, lw=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if kinds[0] == "counts kept":
            axis.set_xscale("log")
            axis.set_xticks(x, [f"{share:g}" for share in x])
            axis.minorticks_off()
            axis.invert_xaxis()
        else:
            axis.set_xticks(x)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    handles = axes[0].get_legend_handles_labels()
    handles[0].append(plt.Rectangle((0, 0), 1, 1, color="#555555", alpha=0.25, lw=0))
    handles[1].append(band)
    columns = 5 if max(map(len, results)) < 16 else 3  # that the figure is wide enough for
    figure.legend(*handles, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    unfinished = path.with_name(f".{path.name}.part")
    figure.savefig(unfinished, dpi=140, format="png")
    plt.close(figure)
    os.replace(unfinished, path)
