"""Labels or features of a subset's cells -> how diverse they are, in three published measures."""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from scaling.corpus import sketch, subsets
from scaling.corpus.shards import Corpus

VENDI_CELLS, VENDI_SEED = 2_000, 0  # at most so many cells of a subset, those of least hash
LABELS = ("cell_type", "dataset")
MEASURES = (*(f"{of}_{label}" for label in LABELS for of in ("shannon", "gini_simpson")), "vendi")


def of_subset(corpus: Corpus, rows: np.ndarray) -> dict[str, float | None]:
    """Diversity of a subset, as it stands in a run's summary and in its rows of scores.

    The Vendi score is that of at most 2,000 of the cells, in the rank weights of their genes
    (`sketch.rank_weights`): it counts at most as many as there are cells, so subsets below 2,000
    cells are compared at one size only.

    Args:
      corpus: built corpus.
      rows: int64 [n], the subset's cells.

    Returns:
      shannon_cell_type and gini_simpson_cell_type, None where no cell has a label (cells without
      one are left out); shannon_dataset, gini_simpson_dataset; vendi.
    """
    found = {}
    for column in LABELS:
        labels = corpus.obs[column].to_numpy()[rows]
        labels = labels[labels != ""]
        found[f"shannon_{column}"] = shannon(labels) if len(labels) else None
        found[f"gini_simpson_{column}"] = gini_simpson(labels) if len(labels) else None
    ids = corpus.obs["cell_id"].to_numpy()[rows]
    sample = rows[subsets.order(ids, VENDI_SEED)[:VENDI_CELLS]]
    return found | {"vendi": vendi(sketch.rank_weights(corpus, sample))}


def shannon(labels: Sequence[str]) -> float:
    """Shannon's entropy (1948) of the labels' shares p, -sum p log p, in nats.

    From 0 (one label) to log k (k labels, equally often).

    Raises:
      ValueError: no labels.
    """
    shares = _shares(labels)
    return float(-(shares * np.log(shares)).sum()) + 0.0


def gini_simpson(labels: Sequence[str]) -> float:
    """Chance that two cells, drawn with replacement, differ in label: 1 - sum p^2.

    Simpson 1949; from 0 (one label) to 1 - 1/k (k labels, equally often).

    Raises:
      ValueError: no labels.
    """
    return float(1 - (_shares(labels) ** 2).sum())


def vendi(features: np.ndarray | sp.csr_matrix) -> float:
    """Vendi score (Friedman & Dieng 2023): the effective number of dissimilar cells.

    exp(-sum l log l) over the eigenvalues l of K / n, K the cosines between the cells' features.
    From 1 (all alike) to n (all orthogonal). Takes n^3 time, n^2 memory.

    Args:
      features: [n, d], dense or sparse, no row of zeros.

    Raises:
      ValueError: no cells, or one without features.
    """
    features = sp.csr_matrix(features, dtype=np.float64)
    norms = np.sqrt(np.asarray(features.multiply(features).sum(1)).ravel())
    if not len(norms) or not (norms > 0).all():
        raise ValueError(
            f"{int((norms == 0).sum())} of {len(norms)} cells have no features to compare; "
            "leave them out"
        )
    scaled = sp.diags(1 / norms) @ features
    shares = np.linalg.eigvalsh((scaled @ scaled.T).toarray() / len(norms))
    shares = shares[shares > 0]  # rounding leaves some zeros below 0
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _shares(labels: Sequence[str]) -> np.ndarray:
    _, counts = np.unique(np.asarray(labels, object).astype(str), return_counts=True)
    if not len(counts):
        raise ValueError("no labels; the diversity of no cells is not defined")
    return counts / counts.sum()
