"""What cells contribute to a score -> the score as a function of how often each cell counts.

Every function returns a statistic: from weights, float64 [S, N], whole numbers, to float64 [S].
With every cell counted once it is the plain score; NaN where the weighted cells have none.
"""

from collections.abc import Callable

import numpy as np
from scipy.special import xlogy

from scaling.evaluate.intervals import ratio

Statistic = Callable[[np.ndarray], np.ndarray]


def mean_of_means(values_N: np.ndarray, groups: np.ndarray | None = None) -> Statistic:
    """Mean over groups of the mean over the group's cells; NaN values do not count.

    A group none of whose cells counts is left out. Without groups, the mean over cells.
    """
    groups = np.zeros(len(values_N), int) if groups is None else groups
    counted = np.flatnonzero(np.isfinite(values_N))
    order, starts = _runs(np.unique(groups[counted], return_inverse=True)[1])
    cells, values = counted[order], np.asarray(values_N, np.float64)[counted[order]]

    def statistic(w_SxN: np.ndarray) -> np.ndarray:
        weights = w_SxN[:, cells]
        below_SxG = np.add.reduceat(weights, starts, axis=1)
        weights *= values
        means_SxG = ratio(np.add.reduceat(weights, starts, axis=1), below_SxG)
        there_SxG = below_SxG > 0
        return ratio(np.where(there_SxG, means_SxG, 0.0).sum(1), there_SxG.sum(1))

    return statistic


def median(values_N: np.ndarray) -> Statistic:
    """Median over cells, the mean of the two in the middle of an even number; NaN do not count."""
    counted = np.flatnonzero(np.isfinite(values_N))
    cells = counted[np.argsort(values_N[counted], kind="stable")]
    values = values_N[cells]

    def statistic(w_SxN: np.ndarray) -> np.ndarray:
        upto_SxN = np.cumsum(w_SxN[:, cells], axis=1)
        found = np.full(len(w_SxN), np.nan)
        for s, upto_N in enumerate(upto_SxN):
            if upto_N.size and upto_N[-1] > 0:
                middle = (upto_N[-1] + 1) // 2, upto_N[-1] // 2 + 1
                found[s] = values[np.searchsorted(upto_N, middle)].mean()
        return found

    return statistic


def nmi(labels: np.ndarray, clusters: np.ndarray) -> Statistic:
    """Mutual information of labels and clusters over the mean of their entropies."""
    table = _Contingency(labels, clusters)

    def statistic(w_SxN: np.ndarray) -> np.ndarray:
        share_SxP, share_SxL, share_SxC = (n / w_SxN.sum(1)[:, None] for n in table.count(w_SxN))
        of_pairs, of_labels, of_clusters = (
            -xlogy(share, share).sum(1) for share in (share_SxP, share_SxL, share_SxC)
        )
        shared = np.maximum(of_labels + of_clusters - of_pairs, 0.0)
        either = np.where(of_labels > 0, of_labels + of_clusters, 0.0)
        return np.minimum(ratio(2 * shared, either), 1.0)

    return statistic


def ari(labels: np.ndarray, clusters: np.ndarray) -> Statistic:
    """Adjusted Rand index of labels and clusters (Hubert & Arabie 1985)."""
    table = _Contingency(labels, clusters)

    def statistic(w_SxN: np.ndarray) -> np.ndarray:
        n = w_SxN.sum(1)
        of_pairs, of_labels, of_clusters = ((c * (c - 1)).sum(1) / 2 for c in table.count(w_SxN))
        by_chance = of_labels * of_clusters / (n * (n - 1) / 2)
        return ratio(of_pairs - by_chance, (of_labels + of_clusters) / 2 - by_chance)

    return statistic


def best_f1(labels: np.ndarray, chosen: list[str], clusterings: list[np.ndarray]) -> Statistic:
    """Mean over the chosen labels of F1 = 2 both / (label + cluster), of the best cluster.

    Which cluster is best, among those of all clusterings, is decided with every cell counted once.
    """
    tables = [_Contingency(labels, clusters) for clusters in clusterings]
    members, found = [], []
    for name in chosen:
        f1, clustering, cluster = max(table.best_f1(name, i) for i, table in enumerate(tables))
        members.append(labels == name)
        found.append(clusterings[clustering] == cluster)
    members_NxI, found_NxI = (np.stack(x, 1).astype(np.float64) for x in (members, found))

    def statistic(w_SxN: np.ndarray) -> np.ndarray:
        of_label_SxI, of_cluster_SxI = w_SxN @ members_NxI, w_SxN @ found_NxI
        f1_SxI = ratio(2 * w_SxN @ (members_NxI * found_NxI), of_label_SxI + of_cluster_SxI)
        there_SxI = of_label_SxI > 0
        return ratio(np.where(there_SxI, f1_SxI, 0.0).sum(1), there_SxI.sum(1))

    return statistic


class _Contingency:
    """Counts of cells by label (L) and cluster (C), held for the pairs (P) that occur."""

    def __init__(self, labels: np.ndarray, clusters: np.ndarray):
        self._labels, label_N = np.unique(labels, return_inverse=True)
        self._clusters, cluster_N = np.unique(clusters, return_inverse=True)
        pairs, pair_N = np.unique(label_N * len(self._clusters) + cluster_N, return_inverse=True)
        self._label_P, self._cluster_P = np.divmod(pairs, len(self._clusters))
        self._order, self._starts = _runs(pair_N)

    def count(self, w_SxN: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells of each pair [S, P], label [S, L] and cluster [S, C]."""
        of_pairs = np.add.reduceat(w_SxN[:, self._order], self._starts, axis=1)
        of_labels = of_pairs @ np.eye(len(self._labels))[self._label_P]
        return of_pairs, of_labels, of_pairs @ np.eye(len(self._clusters))[self._cluster_P]

    def best_f1(self, name: str, clustering: int) -> tuple[float, int, int]:
        """The highest F1 of a cluster for the label, and where: (F1, clustering, cluster)."""
        of_pairs, of_labels, of_clusters = (
            n[0] for n in self.count(np.ones((1, len(self._order))))
        )
        mine = self._labels[self._label_P] == name
        clusters = self._cluster_P[mine]
        all_of_label = of_labels[self._labels == name]
        f1 = 2 * of_pairs[mine] / (all_of_label + of_clusters[clusters])
        return float(f1.max()), clustering, self._clusters[clusters[f1.argmax()]]


def _runs(codes_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order that brings equal codes, 0 to the highest, together, and where each begins."""
    order = np.argsort(codes_N, kind="stable")
    return order, np.flatnonzero(np.diff(codes_N[order], prepend=-1))
