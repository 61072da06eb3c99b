"""Frozen cell embeddings and expression in; how well unseen types' responses are predicted, out."""

import numpy as np
from scipy import sparse

from scaling.evaluate.change_regressions import cell_components, ridge
from scaling.evaluate.changes import REFERENCE, HeldOut, nothing_scored, score_changes
from scaling.evaluate.intervals import NotScoredError, Score, joined

FEWEST_CELLS = 20  # of a type in each condition, of a perturbation, of its control
FEWEST_UNITS = 4  # one held out, and three that the regressions need
EXPRESSED = 0.01  # share of cells that show a gene, for it to be scored
PREDICTORS = ("embedding", "no_change", "training_mean", "nearest_type", "pca_regression")


def stimulus_response(
    embedding_NxD: np.ndarray,
    expression_NxG: sparse.csr_matrix | np.ndarray,
    cell_type: np.ndarray,
    condition: np.ndarray,
    control: str,
    stimulated: str,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
    predictors: tuple[str, ...] = PREDICTORS,
) -> dict[str, list[Score]]:
    """Predict the response of a cell type that was left out to a stimulus seen in the others.

    A type's response is its mean expression stimulated minus control. Each type with 20 or more
    cells in both conditions is left out in turn, and its response predicted from the other types'
    by

      embedding       ridge regression from the mean embedding of a type's control cells to its
                      response; every type counts the same
      no_change       zero
      training_mean   mean of the other types' responses: for one stimulus, the additive model
      nearest_type    response of the type nearest in mean expression of the control cells
      pca_regression  the embedding's regression, from 50 principal components of the 2,000
                      most variable genes, both of the other types' control cells

    Both regressions have one penalty for all genes, chosen by leaving out one of the other types
    at a time; see `change_regressions.ridge`. Of the type left out, only control cells are used.
    No cell is seen in both conditions, so there is nothing to regress on single cells.

    Args:
      embedding_NxD: frozen, not fitted to stimulated cells.
      expression_NxG: log(1 + counts per ten thousand), CSR or dense. Genes that fewer than 1 % of
        the scored types' cells show are not scored.
      cell_type, condition: one name per cell, "" where unknown; such cells are left out.
      control, stimulated: the two names in condition; cells of others are left out.
      donors: one name per cell, "" where unknown, or None.
      seed: of the resamples; nothing else is drawn.
      predictors: which are made, `training_mean` always among them.

    Returns:
      Scores by predictor, as `score_changes` gives them. All None with a note where fewer than
      four types have the cells.

    Raises:
      NotScoredError: no cell has one of the conditions.
      ValueError: shapes disagree, or values are not finite.
    """
    made = tuple(name for name in PREDICTORS if name in (*predictors, REFERENCE))
    x_NxG = expression(expression_NxG)
    z_NxD = finite(embedding_NxD, x_NxG.shape[0], "embedding")
    cell_type, condition = (names(of, x_NxG.shape[0]) for of in (cell_type, condition))
    if control == stimulated or not {control, stimulated} <= set(condition):
        raise NotScoredError(
            f"control {control!r} and stimulated {stimulated!r} must be two of the conditions "
            f"{sorted(set(condition.tolist()))}"
        )
    sides = (control, stimulated)
    cells = {
        name: [np.flatnonzero((cell_type == name) & (condition == side)) for side in sides]
        for name in sorted(set(cell_type.tolist()) - {""})
    }
    types = [name for name, rows in cells.items() if min(map(len, rows)) >= FEWEST_CELLS]
    few = [f"{name} ({len(a)} + {len(b)})" for name, (a, b) in cells.items() if name not in types]
    left_out = f"left out, of fewer than {FEWEST_CELLS} cells: {', '.join(few)}" if few else ""
    split = (
        f"each of {len(types)} cell types left out in turn; penalties chosen by leaving out one "
        "of the others at a time"
    )
    if len(types) < FEWEST_UNITS:
        why = f"{len(types)} cell types in both conditions, {FEWEST_UNITS} needed"
        return nothing_scored(made, split, joined(why, left_out))
    genes = expressed(x_NxG, np.concatenate([rows for name in types for rows in cells[name]]))
    controls = [cells[name][0] for name in types]
    control_UxG = means(x_NxG, controls)
    response_UxG = means(x_NxG, [cells[name][1] for name in types]) - control_UxG
    z_UxD = np.stack([z_NxD[rows].mean(0) for rows in controls])
    units = []
    for u, name in enumerate(types):
        others = np.flatnonzero(np.arange(len(types)) != u)
        known_UxG = response_UxG[others]
        fitted_on = np.concatenate([controls[other] for other in others])
        nearest = np.square(control_UxG[others] - control_UxG[u]).sum(1).argmin()
        rows = np.concatenate(cells[name])
        predicted = {
            "embedding": ridge(z_UxD[others], known_UxG, z_UxD[[u]])[0],
            "no_change": np.zeros(x_NxG.shape[1]),
            "training_mean": known_UxG.mean(0),
            "nearest_type": known_UxG[nearest],
        }
        if "pca_regression" in predictors:  # takes longer than all others
            pca_UxD = cell_components(x_NxG, fitted_on, control_UxG)
            predicted["pca_regression"] = ridge(pca_UxD[others], known_UxG, pca_UxD[[u]])[0]
        predicted = {name: predicted[name] for name in made}
        units.append(
            HeldOut(
                name,
                x_NxG[rows],
                np.arange(len(rows)) >= len(controls[u]),
                predicted,
                notes={"nearest_type": f"nearest: {types[others[nearest]]}"},
                donors_N=None if donors is None else names(donors, x_NxG.shape[0])[rows],
            )
        )
    known = 0 if donors is None else len(set(names(donors, x_NxG.shape[0])) - {""})
    shared = f"{known} donors, whose types are no independent draws" if known else ""
    note = joined(f"{len(genes)} genes", shared, left_out)
    return score_changes(units, genes, unit="cell types", split=split, note=note, seed=seed)


def means(x_NxG: sparse.csr_matrix, rows_U: list[np.ndarray]) -> np.ndarray:
    """Mean expression of each set of cells: float64 [U, G]."""
    return np.stack([np.asarray(x_NxG[rows].mean(0, dtype=np.float64))[0] for rows in rows_U])


def expressed(x_NxG: sparse.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """Columns of the genes that 1 % or more of the cells show."""
    shown_G = np.bincount(x_NxG[rows].nonzero()[1], minlength=x_NxG.shape[1])
    genes = np.flatnonzero(shown_G >= EXPRESSED * len(rows))
    if len(genes) < 2:
        raise ValueError(
            f"{len(genes)} of {x_NxG.shape[1]} genes are shown by {EXPRESSED:.0%} of {len(rows)} "
            "cells: check that the expression is of these cells"
        )
    return genes


def expression(expression_NxG: sparse.csr_matrix | np.ndarray) -> sparse.csr_matrix:
    """As CSR, with finite values."""
    x_NxG = sparse.csr_matrix(expression_NxG)
    finite(x_NxG.data[:, None], x_NxG.nnz, "expression")
    return x_NxG


def finite(x_NxD: np.ndarray, n: int, what: str) -> np.ndarray:
    """As float64, with n rows and finite values."""
    x_NxD = np.asarray(x_NxD, np.float64)
    if x_NxD.ndim != 2 or len(x_NxD) != n:
        raise ValueError(f"{what} of shape {x_NxD.shape}: one row is needed for each of {n}")
    if not np.isfinite(x_NxD).all():
        raise ValueError(f"{what} holds NaN or infinity: recompute it or drop those rows")
    return x_NxD


def names(names_N: np.ndarray, n: int) -> np.ndarray:
    """As text, one per cell."""
    names_N = np.asarray(names_N, str)
    if names_N.shape != (n,):
        raise ValueError(f"names of shape {names_N.shape} for {n} cells: give one per cell")
    return names_N
