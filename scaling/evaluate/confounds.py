"""Embeddings, genes detected, counts -> share of the embedding that sequencing depth explains."""

import numpy as np

from scaling.evaluate.intervals import Bootstrap, Score, ratio

NAMES = ("r2_genes_detected", "r2_counts")
FEWEST_CELLS = 10  # of fewer, chance alone explains more than a ninth


def depth_shares(
    x_NxD: np.ndarray,
    detected_N: np.ndarray,
    totals_N: np.ndarray,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
) -> list[Score]:
    """R^2 of the regressions of the whole embedding on log genes detected, and on log counts.

    The variance that a line in the covariate explains, summed over the dimensions, over the
    variance summed over the dimensions: the principal-component regression of scIB (Luecken et al.
    2022) with a number in place of the batch. 0: the embedding does not know how deeply a cell was
    sequenced; 1: it knows nothing else. Scores of types and batches may be read off this.

    Args:
      x_NxD: float embeddings.
      detected_N: genes of the vocabulary with a count.
      totals_N: counts over all measured genes; 0 or NaN where unknown.
      donors: as `Bootstrap`'s.
      seed: of the resamples.

    Returns:
      One Score for each of NAMES; without a value where a covariate is unknown or does not vary,
      and of fewer than FEWEST_CELLS cells.

    Raises:
      ValueError: a value of the embedding is not finite, or there are not as many cells.
    """
    shape = np.shape(detected_N), np.shape(totals_N)
    if x_NxD.ndim != 2 or shape != ((len(x_NxD),),) * 2:
        raise ValueError(f"embeddings of shape {x_NxD.shape}, covariates of {shape}: one per cell")
    if not np.isfinite(x_NxD).all():
        raise ValueError("an embedding is not finite; leave out cells without one")
    if len(x_NxD) < FEWEST_CELLS:
        few = f"{len(x_NxD)} cells, {FEWEST_CELLS} needed"
        return [Score(name, None, n=len(x_NxD), note=few) for name in NAMES]
    bootstrap = Bootstrap(len(x_NxD), donors, seed=seed)
    x_NxD = x_NxD - x_NxD.mean(0, dtype=np.float64)
    scores = []
    for name, covariate_N in zip(NAMES, (detected_N, totals_N), strict=True):
        if not (np.asarray(covariate_N) > 0).all():
            scores.append(Score(name, None, note="not known of every cell"))
            continue
        log_N, told = np.log(covariate_N), ""
        for what, values in (("the covariate", log_N), ("the embedding", x_NxD)):
            if not np.ptp(values, axis=0).any():
                told = f"{what} is the same in all cells"
        if told:
            scores.append(Score(name, None, n=len(log_N), note=told))
            continue
        scores.append(bootstrap.score(name, _share(x_NxD, log_N - log_N.mean())))
    return scores


def _share(x_NxD: np.ndarray, c_N: np.ndarray):
    """From how often each cell counts [S, N] to R^2 [S]; x and c are centred but for rounding."""
    together_NxD, squares_N = x_NxD * c_N[:, None], np.square(x_NxD).sum(1)

    def share(w_SxN: np.ndarray) -> np.ndarray:
        cells_S, c_S, x_SxD = w_SxN.sum(1), w_SxN @ c_N, w_SxN @ x_NxD
        of_x_S = w_SxN @ squares_N - np.square(x_SxD).sum(1) / cells_S
        of_c_S = w_SxN @ np.square(c_N) - np.square(c_S) / cells_S
        both_SxD = w_SxN @ together_NxD - x_SxD * (c_S / cells_S)[:, None]
        return ratio(np.square(both_SxD).sum(1), of_x_S * of_c_S)

    return share
