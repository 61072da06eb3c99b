"""True and predicted expression changes of held-out units in; how well they agree, out."""

import dataclasses

import numpy as np
from scipy import sparse
from tqdm import tqdm

from scaling.evaluate.intervals import FEWEST_DONORS, LARGEST, Bootstrap, Score, joined

TOP = 20
SCORES = ("r2", "pearson", "rmse", f"r2_top_{TOP}", f"pearson_top_{TOP}")
RANGES = {name: (0, np.inf) if name == "rmse" else (-np.inf, 1) for name in SCORES}
REFERENCE = "training_mean"  # what the others must beat
ROUNDING = 1e-12  # of a float64 sum, relative
CELLS_AT_A_TIME = 4_096


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One cell type or perturbation that nothing was fitted to, with what was predicted of it.

    Attributes:
      name: of the unit.
      cells_NxG: CSR, expression of the cells that are drawn for its interval.
      treated_N: bool; which of them are treated, the others being its controls.
      predicted: by predictor, the change of each gene, float64 [G]; None where it has none.
      notes: by predictor, why it has none or what a reader must know.
      control_G: mean expression of the controls, where they are not among the cells.
      donors_N: one name per cell, "" where unknown, or None.
    """

    name: str
    cells_NxG: sparse.csr_matrix
    treated_N: np.ndarray
    predicted: dict[str, np.ndarray | None]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    control_G: np.ndarray | None = None
    donors_N: np.ndarray | None = None


def score_changes(
    units: list[HeldOut], genes: np.ndarray, *, unit: str, split: str, note: str, seed: int
) -> dict[str, list[Score]]:
    """Agreement of predicted with true changes, per unit and over the units.

    The true change is the difference of mean log-normalised expression, treated minus control; no
    score is of expression itself, which any predictor of "no change" would get nearly right.

      r2       1 - sum (t - p)^2 / sum (t - mean t)^2 over genes; 0 or less for no change
      pearson  correlation over genes; None for a prediction that is the same for all genes
      rmse     root of the mean squared error over genes, in units of log expression
      r2_top_20, pearson_top_20  over the 20 genes of largest absolute true change. The truth
               chooses them: they flatter whoever predicts a large change anywhere

    A unit's interval is over its cells (donors where five or more are known), the prediction and
    the top genes held as they are: it says how well the truth is known. A resample holds the
    cells' noise twice, which lowers r2 and pearson and raises rmse; the interval is moved by that
    bias (mean of the resamples minus the value; Efron & Tibshirani 1993, chapter 10), so it is
    about the score at that number of cells. Where donors are unknown, cells are taken for
    independent draws, and it is too narrow. The mean over units has an interval over units, from
    five units on; so has its difference to the training mean's, unit by unit. Units that share
    donors are no independent draws either.

    Args:
      units: all with the same predictors, `training_mean` among them.
      genes: columns that are scored, the same for all units.
      unit: what the units are, in the plural.
      split: how units were held out.
      note: of the means.
      seed: of the resamples.

    Returns:
      By predictor: the mean of each score (`of` ""), of its difference to the training mean's
      (`r2_minus_training_mean` and so on), and each score of each unit (`of` its name). Their n
      counts cells.
    """
    found = {predictor: {} for predictor in units[0].predicted}  # [unit][score]
    for held_out in tqdm(units, desc=f"scoring {unit}", disable=len(units) < 3):
        for predictor, scores in _score_unit(held_out, genes, split, seed).items():
            found[predictor][held_out.name] = scores
    n_U = np.array([held_out.cells_NxG.shape[0] for held_out in units])
    value_U = {
        (predictor, name): np.array([_nan(scores[name].value) for scores in by_unit.values()])
        for predictor, by_unit in found.items()
        for name in SCORES
    }
    rows = {}
    for predictor, by_unit in found.items():
        means = {name: value_U[predictor, name] for name in SCORES}
        if predictor != REFERENCE:
            means |= {
                f"{name}_minus_{REFERENCE}": value_U[predictor, name] - value_U[REFERENCE, name]
                for name in SCORES
            }
        rows[predictor] = [
            _mean(name, values_U, n_U, unit=unit, split=split, note=note, seed=seed)
            for name, values_U in means.items()
        ]
        rows[predictor] += [scores[name] for scores in by_unit.values() for name in SCORES]
    return rows


def nothing_scored(predictors: tuple[str, ...], split: str, note: str) -> dict[str, list[Score]]:
    """The scores of a data set that has too little to hold out: None, with the reason."""
    return {
        predictor: [Score(name, None, split=split, note=note) for name in SCORES]
        for predictor in predictors
    }


def _score_unit(held_out, genes, split, seed) -> dict[str, dict[str, Score]]:
    """Each score by predictor and name."""
    agreement = _Agreement(held_out, genes)
    n = held_out.cells_NxG.shape[0]
    bootstrap = Bootstrap(n, held_out.donors_N, seed=seed)
    found = {}
    for predictor, predicted_G in held_out.predicted.items():
        known = {"n": n, "of": held_out.name, "split": split}
        note = held_out.notes.get(predictor, "")
        found[predictor] = {}
        for name in SCORES:
            if predicted_G is None:
                found[predictor][name] = Score(name, None, note=note, **known)
                continue
            value_S = bootstrap.values(lambda w_SxN, of=(predictor, name): agreement(w_SxN)[of])
            if np.isfinite(value_S[0]):
                value_S[1:] -= np.nanmean(value_S[1:]) - value_S[0]  # the bias of resampling
                value_S = value_S.clip(*RANGES[name])
                told = note
            else:
                told = joined("the predicted or the true change is the same for all genes", note)
            found[predictor][name] = bootstrap.of_values(name, value_S, note=told, **known)
    return found


class _Agreement:
    """All scores of all predictions of a unit, from how often each of its cells counts.

    Works each set of resamples out once: a Bootstrap shows every score the same ones.
    """

    def __init__(self, held_out: HeldOut, genes: np.ndarray):
        self._x_NxG = held_out.cells_NxG[:, genes]
        self._treated_N = held_out.treated_N
        self._control_G = None if held_out.control_G is None else held_out.control_G[genes]
        self._predicted = {
            predictor: predicted_G[genes]
            for predictor, predicted_G in held_out.predicted.items()
            if predicted_G is not None
        }
        true_G = self._change(np.ones((1, len(self._treated_N))))[0]
        self._top = np.argsort(-np.abs(true_G), kind="stable")[:TOP]
        self._known = {}

    def __call__(self, weights_SxN: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        key = hash(weights_SxN.tobytes())
        if key not in self._known:
            together = max(1, LARGEST // self._x_NxG.shape[1])
            parts = [
                self._scores(self._change(weights_SxN[first : first + together]))
                for first in range(0, len(weights_SxN), together)
            ]
            self._known[key] = {
                name: np.concatenate([part[name] for part in parts]) for name in parts[0]
            }
        return self._known[key]

    def _change(self, weights_SxN: np.ndarray) -> np.ndarray:
        """Mean of the treated minus mean of the controls, float64 [S, G]; linear in the shares."""
        share_SxN = _shares(weights_SxN * self._treated_N)
        if self._control_G is None:
            share_SxN = share_SxN - _shares(weights_SxN * ~self._treated_N)
        change_SxG = np.zeros((len(weights_SxN), self._x_NxG.shape[1]))
        for first in range(0, self._x_NxG.shape[0], CELLS_AT_A_TIME):
            cells = slice(first, first + CELLS_AT_A_TIME)
            change_SxG += share_SxN[:, cells] @ self._x_NxG[cells].toarray()
        return change_SxG if self._control_G is None else change_SxG - self._control_G

    def _scores(self, true_SxG: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        predicted_PxG = np.stack(list(self._predicted.values()))
        r2, pearson, rmse = _agree(true_SxG, predicted_PxG)
        r2_top, pearson_top, _ = _agree(true_SxG[:, self._top], predicted_PxG[:, self._top])
        values = zip(SCORES, (r2, pearson, rmse, r2_top, pearson_top), strict=True)
        return {
            (predictor, name): values_PxS[p]
            for name, values_PxS in values
            for p, predictor in enumerate(self._predicted)
        }


def _agree(true_SxG: np.ndarray, predicted_PxG: np.ndarray) -> tuple[np.ndarray, ...]:
    """R2, Pearson correlation and root mean squared error over genes, each [P, S]."""
    squared_PxS = np.stack([np.square(true_SxG - p_G).mean(1) for p_G in predicted_PxG])
    spread_S, spread_P = _spread(true_SxG), _spread(predicted_PxG)
    centred_PxG = predicted_PxG - predicted_PxG.mean(1, keepdims=True)
    shared_PxS = centred_PxG @ true_SxG.T / true_SxG.shape[1]
    pearson_PxS = shared_PxS / np.sqrt(spread_P[:, None] * spread_S)
    return 1 - squared_PxS / spread_S, pearson_PxS, np.sqrt(squared_PxS)


def _spread(x_RxG: np.ndarray) -> np.ndarray:
    """Variance over genes, [R]; NaN where it is zero but for rounding."""
    variance_R = x_RxG.var(1)
    variance_R[variance_R <= ROUNDING * np.square(x_RxG).mean(1)] = np.nan
    return variance_R


def _mean(name, values_U, n_U, *, unit, split, note, seed) -> Score:
    """Mean over the units that have a value, with an interval over them."""
    has_U = np.isfinite(values_U)
    missing = f"{len(values_U) - has_U.sum()} of {len(values_U)} {unit} have no value"
    note = joined(note, "" if has_U.all() else missing)
    known = {"n": int(n_U[has_U].sum()), "split": split, "note": note}
    score = Bootstrap(int(has_U.sum()), seed=seed).mean(name, values_U[has_U], **known)
    if has_U.sum() < FEWEST_DONORS:
        few = f"fewer than {FEWEST_DONORS} {unit}: no interval" if has_U.any() else ""
        note = joined(note, few)
        return dataclasses.replace(score, low=None, high=None, interval="", note=note)
    return dataclasses.replace(score, interval=f"{has_U.sum()} {unit}" if score.interval else "")


def _shares(weights_SxN: np.ndarray) -> np.ndarray:
    total_S = weights_SxN.sum(1, keepdims=True)
    empty = np.full_like(weights_SxN, np.nan)
    return np.divide(weights_SxN, total_S, out=empty, where=total_S > 0)


def _nan(value: float | None) -> float:
    return np.nan if value is None else value
