"""Embeddings with cell-type labels in; predictions and scores of two frozen probes out."""

import warnings

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from scaling.evaluate.intervals import NotScoredError, Score
from scaling.evaluate.label_scores import Predictions, score_labels

NEIGHBOURS = 5
LOGISTIC_ITERATIONS = 2_000


def split(
    obs: pd.DataFrame, *, label: str, group: str | None, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Divide the labelled cells into a side to fit probes on and a side to test them on.

    Whole groups (batches, donors) go to one side wherever there are two or more: a probe tested
    on the groups it was fitted on is rewarded for knowing the batch. Two groups: the first in
    sorted order is fitted on, the second tested. More: shuffled by the seed, the first half
    (rounded up) fitted on. With one group or none, each class is halved at random, the odd cell
    fitted on, so that a class of a single cell is never tested unseen.

    A class with cells only on the test side stays there: no probe can name it, and each of its
    cells counts as an error. Cells without a label, or without a group where groups divide, are
    on neither side.

    Args:
      obs: one row per cell.
      label: column of cell types; missing or blank entries are cells without a label.
      group: column of groups, or None.
      seed: of the shuffles.

    Returns:
      Sorted row numbers to fit on and to test on (int64), and a sentence that says how the cells
      were divided, with every group named.

    Raises:
      ValueError: a named column is missing, or fewer than two classes are left.
    """
    labels = _column(obs, label)
    labelled = labels.notna()
    groups = _column(obs, group) if group is not None else pd.Series(None, index=labels.index)
    names = sorted(groups[labelled].dropna().unique())
    by_group = len(names) >= 2
    rows = np.flatnonzero(labelled & groups.notna() if by_group else labelled)
    classes = np.unique(labels.iloc[rows].to_numpy(str)) if rows.size else np.array([])
    if classes.size < 2:
        raise ValueError(
            f"column {label!r} has {classes.size} cell type(s) in {rows.size} labelled cells; "
            "a probe needs two: choose another column or data set"
        )
    rng = np.random.default_rng(seed)
    if by_group:
        if len(names) > 2:
            names = list(rng.permutation(names))
        half = (len(names) + 1) // 2
        fitted, tested = sorted(names[:half]), sorted(names[half:])
        is_fitted = groups.iloc[rows].isin(fitted).to_numpy()
        how = f"by {group}: fitted on {', '.join(fitted)}; tested on {', '.join(tested)}"
    else:
        is_fitted = _halve_each_class(labels.iloc[rows].to_numpy(str), rng)
        how = "at random: half of each class fitted on, half tested"
    return rows[is_fitted], rows[~is_fitted], how


def _column(obs: pd.DataFrame, name: str) -> pd.Series:
    """A column as text, blank entries missing, numbered by row."""
    if name not in obs.columns:
        raise ValueError(f"no column {name!r} in obs; the columns are {list(obs.columns)}")
    text = obs[name].astype(object).where(obs[name].notna().to_numpy(), None)
    text = text.map(lambda entry: str(entry).strip() or None, na_action="ignore")
    return text.reset_index(drop=True)


def _halve_each_class(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """True for a random half of each class's cells, rounded up."""
    chosen = np.zeros(labels.size, bool)
    for name in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == name))
        chosen[members[: (members.size + 1) // 2]] = True
    return chosen


def fit_probes(
    train_NxD: np.ndarray, train_labels: np.ndarray, *, seed: int
) -> dict[str, KNeighborsClassifier | Pipeline]:
    """Fit two probes on frozen embeddings.

    knn: the vote of the 5 nearest training cells (Euclidean, on the embeddings as they are:
    scaling would give a rarely seen gene the weight of any other). logistic: a multinomial
    logistic regression with an L2 penalty (C = 1), fitted until it converges to features scaled
    to mean 0 and variance 1 of the training cells.

    Args:
      train_NxD: float embeddings, one row per cell.
      train_labels: cell types, compared as text.
      seed: handed to the solver (today's L-BFGS draws nothing: equal input, equal probes).

    Raises:
      ValueError: shapes disagree, a value is not finite, or there are too few cells or classes.
      NotScoredError: the logistic regression did not converge.
    """
    train_labels = np.asarray(train_labels, str)
    check("training", train_NxD, train_labels)
    if train_labels.size < NEIGHBOURS or len(set(train_labels)) < 2:
        raise ValueError(
            f"{train_labels.size} training cells of {len(set(train_labels))} classes: at least "
            f"{NEIGHBOURS} training cells of 2 classes are needed; split the cells another way"
        )
    knn = KNeighborsClassifier(NEIGHBOURS).fit(train_NxD, train_labels)
    # float64: in float32 the solver's line search stops early on strongly correlated features.
    logistic = make_pipeline(
        FunctionTransformer(np.asarray, kw_args={"dtype": np.float64}),
        StandardScaler(),
        LogisticRegression(max_iter=LOGISTIC_ITERATIONS, random_state=seed),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            logistic.fit(train_NxD, train_labels)
        except ConvergenceWarning as unfinished:
            raise NotScoredError(
                f"the logistic probe did not converge in {LOGISTIC_ITERATIONS} iterations on "
                f"{train_NxD.shape[0]} cells x {train_NxD.shape[1]} features; look for features "
                "of extreme scale in the embedding"
            ) from unfinished
    return {"knn": knn, "logistic": logistic}


def predict(
    probes: dict[str, KNeighborsClassifier | Pipeline], test_NxD: np.ndarray
) -> dict[str, Predictions]:
    """What each probe says of cells, by its name; probabilities of the logistic one alone.

    Raises:
      ValueError: a value is not finite, or another number of dimensions than at fitting.
    """
    check("test", test_NxD, np.empty(len(test_NxD), str))
    fitted = probes["knn"].n_features_in_
    if test_NxD.shape[1] != fitted:
        raise ValueError(
            f"training embeddings have {fitted} dimensions, test embeddings {test_NxD.shape[1]}: "
            "embed both with the same model"
        )
    if not len(test_NxD):
        return {name: Predictions(np.empty(0, str)) for name in probes}
    logistic = probes["logistic"]
    p_NxC = logistic.predict_proba(test_NxD)
    return {
        "knn": Predictions(probes["knn"].predict(test_NxD)),
        "logistic": Predictions(logistic.classes_[p_NxC.argmax(1)], logistic.classes_, p_NxC),
    }


def probe(
    train_NxD: np.ndarray,
    train_labels: np.ndarray,
    test_NxD: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int,
    split: str = "",
    donors: np.ndarray | None = None,
    pretrained_labels: np.ndarray | None = None,
) -> list[Score]:
    """Fit both probes on frozen embeddings and score them on held-out cells.

    Args:
      train_NxD, train_labels, seed: as for fit_probes; the seed is that of the resamples too.
      test_NxD, test_labels: cells to score on.
      split: how the cells were divided; kept in every score.
      donors: of the test cells, "" where unknown, or None.
      pretrained_labels: cell types of the cells of pretraining, or None.

    Returns:
      The scores of `label_scores.score_labels`, named knn_... and logistic_...

    Raises: ValueError as fit_probes, predict and score_labels do.
    """
    check("test", test_NxD, np.asarray(test_labels, str))
    found = predict(fit_probes(train_NxD, train_labels, seed=seed), test_NxD)
    return [
        score
        for name, predicted in found.items()
        for score in score_labels(
            test_labels, predicted, train_labels=train_labels,
            pretrained_labels=pretrained_labels, donors=donors, seed=seed, split=split,
            prefix=f"{name}_",
        )
    ]  # fmt: skip


def check(side: str, x_NxD: np.ndarray, labels: np.ndarray) -> None:
    """Raises a ValueError on embeddings of other cells than the labels, or not finite ones."""
    if x_NxD.ndim != 2 or labels.shape != x_NxD.shape[:1]:
        raise ValueError(
            f"{side} embeddings of shape {x_NxD.shape} and labels of shape {labels.shape}: "
            "pass cells x dimensions and one label per cell"
        )
    if not np.isfinite(x_NxD).all():
        raise ValueError(
            f"{side} embeddings hold NaN or infinity in "
            f"{int((~np.isfinite(x_NxD)).any(1).sum())} cells; drop or recompute them"
        )
