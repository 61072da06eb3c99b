"""Raw counts with cell-type labels in; tuned classifiers on expression out, which predict types."""

import dataclasses
import warnings

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC
from tqdm import tqdm

from scaling.evaluate.baselines import Hvg, apply_hvg, fit_hvg
from scaling.evaluate.intervals import Score
from scaling.evaluate.label_scores import Predictions, score_labels

NAMES = ("majority", "logistic", "random_forest", "svm")
COMPONENTS = 30
LARGEST = 10.0  # standard deviations of a scaled gene
FOLDS = 3  # of the inner split, at most
NO_FOLDS = "no inner split of these cells leaves two cell types to fit on"
TREES = 200
STEPS = 5_000


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A fitted classifier, the genes that it looks at, and how it was tuned."""

    hvg: Hvg
    model: BaseEstimator
    note: str

    def predict(self, counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None) -> Predictions:
        """Cell types of other cells over the same genes; probabilities but for the SVM."""
        x_NxG = apply_hvg(self.hvg, counts_NxG, total_N)
        classes = self.model.classes_
        if not len(x_NxG):
            return Predictions(np.empty(0, str), note=self.note)
        if not hasattr(self.model, "predict_proba"):
            return Predictions(self.model.predict(x_NxG), note=self.note)
        p_NxC = self.model.predict_proba(x_NxG)
        return Predictions(classes[p_NxC.argmax(1)], classes, p_NxC, self.note)


def fit(
    counts_NxG: sparse.csr_matrix,
    total_N: np.ndarray | None,
    labels: np.ndarray,
    *,
    donors: np.ndarray | None = None,
    batches: np.ndarray | None = None,
    seed: int = 0,
    names: tuple[str, ...] = NAMES,
) -> dict[str, Classifier]:
    """Fit classifiers on the expression of training cells, each tuned by an inner split of them.

    All see log(1 + counts per ten thousand) of the 2,000 most variable genes of these cells.
    majority: the commonest cell type, probabilities the shares. logistic: 30 principal
    components of the genes as they are or scaled (tuned), multinomial logistic regression.
    random_forest: 200 trees. svm: linear, one against the rest, on genes scaled to mean 0 and
    variance 1.

    Tuned by macro-F1 over three folds: of whole donors where every cell has one and there are two
    or more, else of whole batches, else of cells, in the shares of the classes. Components,
    scaling and model are fitted anew in each fold; the genes are chosen once, without labels.

    Args:
      counts_NxG: CSR, raw counts of the training cells.
      total_N: their counts over all measured genes; None takes the row sums.
      labels: their cell types, one per cell.
      donors, batches: of the same cells, "" where unknown, or None.
      seed: of folds, trees and the SVM's order of cells.
      names: which of the four.

    Raises:
      ValueError: fewer labels than cells, fewer than two cell types, or as fit_hvg does.
    """
    labels = np.asarray(labels, str)
    if labels.shape != counts_NxG.shape[:1]:
        raise ValueError(f"{labels.size} labels for {counts_NxG.shape[0]} cells: pass one for each")
    if len(set(labels)) < 2:
        raise ValueError(
            f"{labels.size} training cells of {len(set(labels))} cell type(s): a classifier needs "
            "two; split the cells another way"
        )
    hvg = fit_hvg(counts_NxG, total_N)
    x_NxG = apply_hvg(hvg, counts_NxG, total_N)
    folds, how = inner_folds(labels, donors, batches, seed)
    fitted = {}
    for name in tqdm(names, desc="classifiers", leave=False):
        model, grid = _model(name, seed, min(COMPONENTS, *_smallest(x_NxG, folds)))
        if not grid or not folds:
            note = "nothing to tune" if not grid else f"not tuned: {how}"
            fitted[name] = Classifier(hvg, model.fit(x_NxG, labels), note)
            continue
        search = GridSearchCV(model, grid, scoring=make_scorer(_macro_f1), cv=folds, refit=True)
        search.fit(x_NxG, labels)
        chosen = ", ".join(f"{_short(key)} {value}" for key, value in search.best_params_.items())
        tried = "; ".join(f"{_short(key)} of {values}" for key, values in grid.items())
        note = f"chosen {chosen} (tried {tried}) by macro-F1 {search.best_score_:.3f} over {how}"
        fitted[name] = Classifier(hvg, search.best_estimator_, note)
    return fitted


def classify(
    classifiers: dict[str, Classifier],
    counts_NxG: sparse.csr_matrix,
    total_N: np.ndarray | None,
    labels: np.ndarray,
    *,
    train_labels: np.ndarray,
    donors: np.ndarray | None = None,
    seed: int = 0,
    split: str = "",
) -> dict[str, list[Score]]:
    """Scores of fitted classifiers on test cells, by the classifier's name.

    Args:
      classifiers: of fit.
      counts_NxG, total_N, labels, donors: of the test cells, over the same genes.
      train_labels, seed, split: as for score_labels.
    """
    return {
        name: score_labels(
            labels, classifier.predict(counts_NxG, total_N), train_labels=train_labels,
            donors=donors, seed=seed, split=split,
        )
        for name, classifier in classifiers.items()
    }  # fmt: skip


def inner_folds(
    labels: np.ndarray, donors: np.ndarray | None, batches: np.ndarray | None, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Rows to fit on and to validate on, fold by fold, and a sentence that says how.

    A fold's rows to fit on hold two classes or more; where a way of dividing has a fold that does
    not, the next way is tried. An empty list where none is left.
    """
    largest = np.unique(labels, return_counts=True)[1].max()
    if largest < 2:  # of one cell per type, no fold leaves a type to fit on and to validate on
        return [], NO_FOLDS
    for what, groups in (("donors", donors), ("batches", batches), ("cells", None)):
        if groups is None and what != "cells":
            continue
        if groups is not None:
            groups = np.asarray(groups, str)
            units = len(set(groups.tolist()))
            if (groups == "").any() or units < 2:
                continue
            count = min(FOLDS, units, largest)
            folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
        else:
            folds = StratifiedKFold(min(FOLDS, largest), shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # A class rarer than the folds is missing from some, which macro-F1 allows for.
            warnings.filterwarnings("ignore", "The least populated class")
            found = list(folds.split(labels, labels, groups))
        if all(len(set(labels[rows])) > 1 and len(held) for rows, held in found):
            return found, f"{len(found)} inner folds of {what} of the training cells"
    return [], NO_FOLDS


def _model(name: str, seed: int, components: int) -> tuple[BaseEstimator, dict]:
    """An unfitted classifier and what is tried for it; the first of each where none is tuned."""
    if name == "majority":
        return DummyClassifier(strategy="prior"), {}
    if name == "logistic":
        model = Pipeline([
            ("genes", StandardScaler()),
            ("clip", FunctionTransformer(np.clip, kw_args={"a_min": -LARGEST, "a_max": LARGEST})),
            ("pca", PCA(components, svd_solver="arpack", random_state=seed)),
            ("logistic", LogisticRegression(max_iter=STEPS)),
        ])  # fmt: skip
        return model, {"genes": [StandardScaler(), "passthrough"], "logistic__C": [0.01, 0.1, 1.0]}
    if name == "random_forest":
        forest = RandomForestClassifier(TREES, random_state=seed)
        return forest, {"max_features": ["sqrt", 0.1], "min_samples_leaf": [1, 3]}
    if name == "svm":
        svm = LinearSVC(random_state=seed, max_iter=STEPS)
        return make_pipeline(StandardScaler(), svm), {"linearsvc__C": [1e-4, 1e-3, 1e-2]}
    raise ValueError(f"no classifier {name!r}; there are {', '.join(NAMES)}")


def _smallest(x_NxG: np.ndarray, folds: list) -> tuple[int, int]:
    """One less than the cells and the genes of the smallest set that is fitted on."""
    return min([len(x_NxG), *(len(rows) for rows, _ in folds)]) - 1, x_NxG.shape[1] - 1


def _macro_f1(true_N: np.ndarray, labels_N: np.ndarray) -> float:
    return f1_score(true_N, labels_N, labels=np.unique(true_N), average="macro")


def _short(parameter: str) -> str:
    return parameter.rsplit("__", 1)[-1]
