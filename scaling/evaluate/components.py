"""Expression or embeddings -> leading principal components and how much of them batches explain."""

from collections.abc import Callable

import numpy as np
from sklearn.decomposition import PCA

COMPONENTS = 50  # of the principal-component regression, as in scIB
ROUNDING = 1e-12  # of a float64 sum, relative
ROWS = 4_096  # in float64 at a time


def leading(x_NxF: np.ndarray) -> np.ndarray | None:
    """Coordinates on the leading 50 principal components, float64 [N, at most 50], centred.

    All coordinates, only centred, where there are no more than 50: a rotation changes no sum.
    None if nothing varies. Of more cells than features, float64 copies are of 4,096 rows at most.
    """
    n, n_features = x_NxF.shape
    mean_F = np.mean(x_NxF, axis=0, dtype=np.float64)
    scale = max(abs(float(x_NxF.max())), abs(float(x_NxF.min())))
    pieces = [slice(first, first + ROWS) for first in range(0, n, ROWS)]
    # Centring leaves rounding errors of this size where all cells are equal.
    if max(np.abs(x_NxF[rows] - mean_F).max() for rows in pieces) <= ROUNDING * scale:
        return None
    if min(n, n_features) <= COMPONENTS:
        return x_NxF - mean_F
    if n <= n_features:
        # Lanczos iterations to machine precision: the start vector decides nothing.
        fitted = PCA(COMPONENTS, svd_solver="arpack", random_state=0)
        return fitted.fit_transform(np.asarray(x_NxF, np.float64))
    scatter_FxF = np.zeros((n_features, n_features))
    for rows in pieces:
        centred_RxF = x_NxF[rows] - mean_F
        scatter_FxF += centred_RxF.T @ centred_RxF
    axes_FxK = np.linalg.eigh(scatter_FxF)[1][:, : -COMPONENTS - 1 : -1]
    return np.concatenate([(x_NxF[rows] - mean_F) @ axes_FxK for rows in pieces])


def batch_share(x_NxK: np.ndarray, batch: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Share of the sum of squares that lies between batches, by how often each cell counts.

    Args:
      x_NxK: float64 coordinates.
      batch: one name per cell.

    Returns:
      From weights float64 [S, N] to shares float64 [S]; NaN where nothing varies.
    """
    members_B = [np.flatnonzero(batch == name) for name in np.unique(batch)]
    squares_N = np.square(x_NxK).sum(1)

    def share(w_SxN: np.ndarray) -> np.ndarray:
        sums_BxSxK = np.stack([w_SxN[:, members] @ x_NxK[members] for members in members_B])
        cells_BxS = np.stack([w_SxN[:, members].sum(1) for members in members_B])
        squared_BxS = np.square(sums_BxSxK).sum(2)
        per_batch_BxS = np.divide(
            squared_BxS, cells_BxS, out=np.zeros_like(squared_BxS), where=cells_BxS > 0
        )
        of_all_S = np.square(sums_BxSxK.sum(0)).sum(1) / cells_BxS.sum(0)
        total_S = w_SxN @ squares_N - of_all_S
        between_S = np.maximum(per_batch_BxS.sum(0) - of_all_S, 0.0)
        varies_S = total_S > 0
        return np.divide(between_S, total_S, out=np.full(len(total_S), np.nan), where=varies_S)

    return share
