"""Embeddings of training units with their changes in; the changes of unseen units out."""

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from sklearn.utils.sparsefuncs import mean_variance_axis

VARIABLE_GENES = 2_000
COMPONENTS = 50  # of cells' expression
GENE_COMPONENTS = 10  # as Ahlmann-Eltze et al.
INNER_FOLDS = 5
PENALTIES = np.logspace(4, -4, 17)  # falling, so that ties go to the larger
BILINEAR_PENALTIES = np.logspace(3, -2, 6)


def ridge(train_UxD: np.ndarray, train_UxG: np.ndarray, test_TxD: np.ndarray) -> np.ndarray:
    """Ridge regression with a free intercept, for the test rows: float64 [T, G].

    The penalty, one for all outputs, is that of least squared error when one training row is left
    out at a time (in closed form), of 17 from 1e-4 to 1e4 times the mean squared distance of the
    training rows from their mean: so the scale of an embedding does not matter. At the largest
    the prediction is all but the training mean. Needs three training rows: of two, either is
    predicted by the other whatever the penalty.
    """
    centre_D = train_UxD.mean(0)
    spread = np.sqrt(np.square(train_UxD - centre_D).sum(1).mean()) or 1.0
    train_UxD, test_TxD = (train_UxD - centre_D) / spread, (test_TxD - centre_D) / spread
    # A rotation to the few directions of the training rows, outside of which nothing is learnt.
    directions_KxD = np.linalg.svd(train_UxD, full_matrices=False)[2]
    fitted = RidgeCV(PENALTIES, alpha_per_target=False)
    fitted.fit(train_UxD @ directions_KxD.T, train_UxG)
    return fitted.predict(test_TxD @ directions_KxD.T).reshape(len(test_TxD), -1)


def cell_components(
    x_NxG: sparse.csr_matrix, rows: np.ndarray, test_UxG: np.ndarray
) -> np.ndarray:
    """Mean expression on the leading 50 components of the cells in rows: float64 [U, 50].

    Of the 2,000 genes whose expression varies most among those cells.
    """
    cells_NxG = x_NxG[rows].astype(np.float64)
    variance_G = mean_variance_axis(cells_NxG, axis=0)[1]
    genes = np.argsort(-variance_G, kind="stable")[:VARIABLE_GENES]
    kept = min(COMPONENTS, len(rows) - 1, len(genes) - 1)
    # Lanczos iterations to machine precision: the start vector decides nothing.
    pca = PCA(kept, svd_solver="arpack", random_state=0).fit(cells_NxG[:, genes])
    return pca.transform(test_UxG[:, genes])


def bilinear(
    change_UxG: np.ndarray,
    control_G: np.ndarray,
    columns_U: list[list[int]],
    columns_T: list[list[int]],
    *,
    seed: int,
) -> np.ndarray:
    """The linear baseline of Ahlmann-Eltze, Huber & Anders (Nature Methods 2025), Y ~ G W P' + b.

    Y holds the changes, genes x training perturbations; b their mean over perturbations; G the
    leading 10 principal components of the genes: of mean expression, genes x training
    perturbations, each column centred; P the rows of G of the perturbed genes. W is
    (G'G + l)^-1 G' (Y - b) P (P'P + l)^-1. As in the authors' program, the control is one more
    training perturbation, whose change and row of P are zero. Theirs has l = 0.1; here five folds
    of the training perturbations choose among 0.01, 0.1 ... 1,000.

    Args:
      change_UxG: of the training perturbations.
      control_G: mean expression of the control; theirs is that plus the change.
      columns_U: of each training perturbation, the columns of its perturbed genes; a row of P is
        the mean over them.
      columns_T: likewise, of the perturbations to predict.
      seed: of the folds.

    Returns:
      Changes, float64 [T, G].
    """
    folds = KFold(min(INNER_FOLDS, len(columns_U)), shuffle=True, random_state=seed)
    errors = np.zeros(len(BILINEAR_PENALTIES))
    for train, test in folds.split(change_UxG):
        predicted_LxTxG = _bilinear(
            change_UxG[train],
            control_G,
            [columns_U[u] for u in train],
            [columns_U[u] for u in test],
            BILINEAR_PENALTIES,
        )
        errors += np.square(predicted_LxTxG - change_UxG[test]).sum((1, 2))
    best = BILINEAR_PENALTIES[[errors.argmin()]]
    return _bilinear(change_UxG, control_G, columns_U, columns_T, best)[0]


def _bilinear(change_UxG, control_G, columns_U, columns_T, penalties) -> np.ndarray:
    """For each penalty the changes of the test perturbations, [penalties, T, G]."""
    change_UxG = np.vstack([change_UxG, np.zeros_like(control_G)])
    kept = min(GENE_COMPONENTS, *change_UxG.shape)
    g_GxK = PCA(kept, svd_solver="full").fit_transform((change_UxG + control_G).T)
    p_UxK = np.stack([g_GxK[genes].mean(0) for genes in columns_U] + [np.zeros(kept)])
    test_TxK = np.stack([g_GxK[genes].mean(0) for genes in columns_T])
    b_G = change_UxG.mean(0)
    found = []
    for penalty in penalties:
        ridge_KxK = penalty * np.eye(kept)
        left_KxU = np.linalg.solve(g_GxK.T @ g_GxK + ridge_KxK, g_GxK.T @ (change_UxG - b_G).T)
        w_KxK = np.linalg.solve(p_UxK.T @ p_UxK + ridge_KxK, p_UxK.T @ left_KxU.T).T
        found.append(test_TxK @ w_KxK.T @ g_GxK.T + b_G)
    return np.stack(found)
