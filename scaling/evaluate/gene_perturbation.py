"""Frozen gene embeddings and a screen's cells in; how well unseen perturbations are predicted."""

from collections.abc import Callable

import numpy as np
from scipy import sparse
from sklearn.model_selection import KFold

from scaling.evaluate.change_regressions import bilinear, ridge
from scaling.evaluate.changes import REFERENCE, HeldOut, nothing_scored, score_changes
from scaling.evaluate.intervals import NotScoredError, Score, joined
from scaling.evaluate.perturbation import (
    FEWEST_CELLS,
    FEWEST_UNITS,
    expressed,
    expression,
    finite,
    means,
    names,
)

FOLDS = 10
PREDICTORS = ("embedding", "no_change", "training_mean", "additive", "pca_regression")
Predictions = list[tuple[dict[str, np.ndarray | None], dict[str, str]]]  # and notes, per unit


def unseen_perturbations(
    gene_embedding_VxD: np.ndarray,
    embedded_genes: np.ndarray,
    expression_NxG: sparse.csr_matrix | np.ndarray,
    measured_genes: np.ndarray,
    perturbation: np.ndarray,
    control: str,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
    predictors: tuple[str, ...] = PREDICTORS,
) -> dict[str, list[Score]]:
    """Predict the change by perturbing a gene that was perturbed in no training cell.

    A perturbation's change is its mean expression minus the control cells'. Perturbations of one
    gene with 20 or more cells are left out by tenths (one at a time of ten or fewer), and
    predicted from the other perturbations of one gene by

      embedding       ridge regression from the perturbed gene's embedding to the change
      no_change       zero
      training_mean   mean of the training perturbations' changes
      pca_regression  the published linear baseline, which takes the genes' embedding from the
                      training cells themselves; see `change_regressions.bilinear`

    There is no additive model of a single unseen gene. The perturbed gene's own expression counts
    like that of others. The interval of one perturbation draws its cells; the control's mean is
    held as it is.

    Args:
      gene_embedding_VxD: frozen, one row per gene.
      embedded_genes, measured_genes: names of the V and of the G genes, written as in
        perturbation. A predictor that lacks a perturbed gene (the embedding one that is not
        embedded, pca_regression one that is not measured) says so, has no score of that
        perturbation, and neither its mean nor its difference to the training mean counts it.
      expression_NxG: log(1 + counts per ten thousand), CSR or dense. Genes that fewer than 1 % of
        the scored and the control cells show are not scored.
      perturbation: one name per cell: the control's, a gene's, or several joined by "+" in any
        order ("A+ctrl" is A where the control is "ctrl"); "" where unknown, which is left out.
      control: its name.
      donors: one name per cell, "" where unknown, or None.
      seed: of folds and resamples.
      predictors: which are made, `training_mean` always among them.

    Returns:
      Scores by predictor, as `score_changes` gives them; all None with a note where fewer than
      four perturbations have the cells.

    Raises:
      ValueError: shapes disagree, names of genes are not unique, values are not finite, or there
        are fewer than 20 control cells.
    """
    screen = _Screen(expression_NxG, measured_genes, perturbation, control, donors)
    embedding = _Genes(gene_embedding_VxD, embedded_genes)
    made = _made(predictors, without=("additive",))

    def predict(train: list[str], test: list[str]) -> Predictions:
        mean_G = screen.changes(train).mean(0)
        return [
            ({"training_mean": mean_G} | predicted, notes)
            for predicted, notes in _regressions(screen, embedding, train, test, seed, made)
        ]

    return _by_folds(screen, screen.singles, predict, made, "perturbations", seed)


def unseen_combinations(
    gene_embedding_VxD: np.ndarray,
    embedded_genes: np.ndarray,
    expression_NxG: sparse.csr_matrix | np.ndarray,
    measured_genes: np.ndarray,
    perturbation: np.ndarray,
    control: str,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
    predictors: tuple[str, ...] = PREDICTORS,
) -> dict[str, list[Score]]:
    """Predict the change by perturbing several genes at once, each of which was seen alone.

    As unseen_perturbations, of the combinations whose genes have 20 cells each alone; training
    are all perturbations of one gene and the combinations of the other folds. Beside no change:

      embedding       ridge regression from the mean embedding of the perturbed genes to the
                      change per perturbed gene
      training_mean   mean of the training combinations' changes
      additive        sum of the changes by each gene alone
      pca_regression  the published linear baseline, likewise per perturbed gene
    """
    screen = _Screen(expression_NxG, measured_genes, perturbation, control, donors)
    embedding = _Genes(gene_embedding_VxD, embedded_genes)
    made = _made(predictors)

    def predict(train: list[str], test: list[str]) -> Predictions:
        mean_G = screen.changes(train).mean(0)
        found = _regressions(screen, embedding, screen.singles + train, test, seed, made)
        return [
            (
                {
                    "training_mean": mean_G,
                    "additive": screen.changes(name.split("+")).sum(0),
                    **predicted,
                },
                notes,
            )
            for name, (predicted, notes) in zip(test, found, strict=True)
        ]

    return _by_folds(screen, screen.combinations, predict, made, "combinations", seed)


class _Genes:
    """Rows of genes by name."""

    def __init__(self, rows_VxD: np.ndarray | None, gene_names: np.ndarray):
        self.index = {name: v for v, name in enumerate(np.asarray(gene_names, str))}
        if len(self.index) != len(gene_names):
            raise ValueError(f"{len(gene_names)} genes have {len(self.index)} names: drop repeats")
        self.rows_VxD = None if rows_VxD is None else finite(rows_VxD, len(gene_names), "genes")

    def lacking(self, perturbation: str) -> list[str]:
        return [gene for gene in perturbation.split("+") if gene not in self.index]

    def of(self, perturbation: str) -> list[int]:
        return [self.index[gene] for gene in perturbation.split("+")]


class _Screen:
    """Cells by perturbation, with their means; a combination's genes are in alphabetic order."""

    def __init__(self, expression_NxG, measured_genes, perturbation, control, donors):
        self.x_NxG = expression(expression_NxG)
        n, n_genes = self.x_NxG.shape
        self.measured = _Genes(None, measured_genes)
        if len(self.measured.index) != n_genes:
            raise ValueError(f"{len(self.measured.index)} names of {n_genes} genes measured")
        self.donors = None if donors is None else names(donors, n)
        written, which_N = np.unique(names(perturbation, n), return_inverse=True)
        cells = {}
        for w, name in enumerate(written.tolist()):
            if name:
                genes = "+".join(sorted(set(name.split("+")) - {control}))
                cells.setdefault(genes, []).append(np.flatnonzero(which_N == w))
        cells = {genes: np.concatenate(rows) for genes, rows in sorted(cells.items())}
        self.control_rows = cells.pop("", np.array([], int))
        if len(self.control_rows) < FEWEST_CELLS:
            raise NotScoredError(
                f"{len(self.control_rows)} cells are of the control {control!r}, {FEWEST_CELLS} "
                f"needed: the perturbations are {', '.join(written[:10])} ..."
            )
        self.rows = {genes: rows for genes, rows in cells.items() if len(rows) >= FEWEST_CELLS}
        self.few = len(cells) - len(self.rows)
        self.singles = [genes for genes in self.rows if "+" not in genes]
        seen = set(self.singles)
        self.combinations = [
            genes for genes in self.rows if "+" in genes and set(genes.split("+")) <= seen
        ]
        self.control_G = means(self.x_NxG, [self.control_rows])[0]
        self._mean = {genes: means(self.x_NxG, [rows])[0] for genes, rows in self.rows.items()}

    def changes(self, perturbations: list[str]) -> np.ndarray:
        """Mean expression minus the control's, float64 [perturbations, G]."""
        return np.stack([self._mean[name] for name in perturbations]) - self.control_G


def _made(predictors: tuple[str, ...], without: tuple[str, ...] = ()) -> tuple[str, ...]:
    return tuple(name for name in PREDICTORS if name in {*predictors, REFERENCE} - {*without})


def _regressions(screen, embedding, train, test, seed, made) -> Predictions:
    """Predictions of no change and of the regressions made, which know the change per gene."""

    def from_embedding(change_UxG, rows_U, rows_T):
        z_UxD, z_TxD = (
            np.stack([embedding.rows_VxD[rows].mean(0) for rows in of]) for of in (rows_U, rows_T)
        )
        return ridge(z_UxD, change_UxG, z_TxD)

    def from_expression(change_UxG, rows_U, rows_T):
        return bilinear(change_UxG, screen.control_G, rows_U, rows_T, seed=seed)

    found = [({"no_change": np.zeros_like(screen.control_G)}, {}) for _ in test]
    for predictor, genes, fit, what in (
        ("embedding", embedding, from_embedding, "embedding"),
        ("pca_regression", screen.measured, from_expression, "expression"),
    ):
        if predictor not in made:
            continue
        fitted = [name for name in train if not genes.lacking(name)]
        wanted = [name for name in test if not genes.lacking(name)]
        by_name = {}
        if wanted and len(fitted) >= FEWEST_UNITS - 1:
            rows_U, rows_T = ([genes.of(name) for name in of] for of in (fitted, wanted))
            change_UxG = screen.changes(fitted) / [[len(rows)] for rows in rows_U]
            by_name = dict(zip(wanted, fit(change_UxG, rows_U, rows_T), strict=True))
        for name, (predicted, notes) in zip(test, found, strict=True):
            if name in by_name:
                predicted[predictor] = by_name[name] * len(genes.of(name))
            else:
                lacking = ", ".join(genes.lacking(name)) or "the training perturbations"
                predicted[predictor], notes[predictor] = None, f"no {what} of {lacking}"
    return found


def _by_folds(
    screen: _Screen,
    units: list[str],
    predict: Callable[[list[str], list[str]], Predictions],
    predictors: tuple[str, ...],
    unit: str,
    seed: int,
) -> dict[str, list[Score]]:
    """Hold out tenths of the units, predict each tenth from the rest, and score."""
    few = f"{screen.few} perturbations of fewer than {FEWEST_CELLS} cells left out"
    note = few if screen.few else ""
    if len(units) < FEWEST_UNITS:
        why = f"{len(units)} {unit} with {FEWEST_CELLS} cells, {FEWEST_UNITS} needed"
        return nothing_scored(predictors, "", joined(why, note))
    scored = [screen.rows[name] for name in units]
    genes = expressed(screen.x_NxG, np.concatenate([*scored, screen.control_rows]))
    folds = KFold(min(FOLDS, len(units)), shuffle=True, random_state=seed)
    held_out = []
    for train, test in folds.split(units):
        tested = [units[t] for t in test]
        for name, (predicted, notes) in zip(
            tested, predict([units[t] for t in train], tested), strict=True
        ):
            rows = screen.rows[name]
            held_out.append(
                HeldOut(
                    name,
                    screen.x_NxG[rows],
                    np.ones(len(rows), bool),
                    {predictor: predicted[predictor] for predictor in predictors},
                    notes,
                    control_G=screen.control_G,
                    donors_N=None if screen.donors is None else screen.donors[rows],
                )
            )
    split = f"{len(units)} {unit} left out in {folds.n_splits} parts; penalties by an inner split"
    note = joined(f"{len(genes)} genes", note)
    return score_changes(held_out, genes, unit=unit, split=split, note=note, seed=seed)
