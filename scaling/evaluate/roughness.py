"""Embeddings with labels in; how rough the labels lie over the embedding (ROGI) out."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist, squareform

from scaling.evaluate import cell_types
from scaling.evaluate.intervals import FEWEST_DONORS, Score, joined

MOST = 2_000  # cells clustered: distances and linkage grow with the square
STEP = 0.01  # between thresholds, of the largest possible distance
LEVELS = 100  # numbers of clusters, evenly apart on the log scale
HALVES = 40  # random halves for the interval
SHUFFLES = 20
NAMES = ("rogi", "rogi_xd")


def roughness(
    embedding_NxD: np.ndarray,
    labels: np.ndarray,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
    most: int = MOST,
) -> list[Score]:
    """Roughness index of labels over an embedding: 0 is smooth; lower is better.

    ROGI (Aldeghi et al., J Chem Inf Model 2022): cells are clustered by complete linkage of
    Euclidean distances over the largest possible one (the diagonal of the box that holds all
    cells); s(t) is the spread of the clusters' mean labels, each cluster counting by its cells,
    when clusters are cut at distance t; the index is s(0) minus the area under s from 0 to 1
    (trapezoids, thresholds at merges at least 0.01 apart). Where like lies by like, s falls
    late. `rogi_xd` (Graff et al., ROGI-XD, 2023) takes the area over 1 - log(clusters) /
    log(cells) instead of t, as distances crowd together in many dimensions: use it to compare
    embeddings of different width. Its thresholds are ours: the merges that leave 100 numbers of
    clusters evenly apart on the log scale, or one far cluster would leave none but the last.

    The published spread is twice the standard deviation of a number in [0, 1]. For K classes
    ours is sqrt(K / (K - 1) * sum over classes of the variance of the class's share in a
    cluster): the same for two classes, and at most 1 for any number.

    Intervals: value +- 1.96 standard deviations over 40 random halves, clustered anew (the
    delete-half jackknife, Shao & Wu 1989), of whole donors where five or more are known. A
    bootstrap would repeat cells, which lie at distance 0 of themselves, and understate it.

    Args:
      embedding_NxD: floats, one row per cell.
      labels: one per cell, "" where unknown (left out).
      donors: one name per cell, or None.
      seed: of the cells drawn, the halves and the shuffles.
      most: cells that are clustered; of more, this many are drawn at random.

    Returns:
      rogi and rogi_xd, each also with shuffled labels (mean over 20 shuffles, no interval), which
      is what labels score that the embedding knows nothing of. None of fewer than three cells, of
      one label, or where all cells have the same embedding.

    Raises:
      ValueError: shapes disagree or the embedding is not finite.
    """
    labels = np.asarray(labels, str)
    cell_types.check("all", embedding_NxD, labels)
    rng = np.random.default_rng(seed)
    rows, note = np.flatnonzero(labels != ""), ""
    if rows.size > most:
        note = f"{most} of {rows.size} cells drawn at random, seed {seed}"
        rows = np.sort(rng.choice(rows, most, replace=False))
    x_NxD = np.asarray(embedding_NxD[rows], np.float64)
    names, code_N = np.unique(labels[rows], return_inverse=True)
    why = f"{rows.size} cells" if rows.size < 3 else "one label" if names.size < 2 else ""
    if why or not np.ptp(x_NxD, axis=0).any():
        why = why or "all cells have the same embedding"
        return [
            Score(name, None, n=rows.size, of=of, note=joined(why, note))
            for of in ("", "shuffled labels")
            for name in NAMES
        ]
    note = joined(f"{names.size} labels", note)
    apart_NxN = squareform(pdist(x_NxD))
    (values,) = _areas(x_NxD, apart_NxN, [code_N], names.size)
    halves, share, interval = _halves(None if donors is None else donors[rows], rows.size, rng)
    each = np.array(
        [
            _areas(x_NxD[half], apart_NxN[np.ix_(half, half)], [code_N[half]], names.size)[0]
            for half in halves
        ]
    )
    reach = 1.96 * np.sqrt(share) * each.std(0, ddof=1)
    shuffled = [rng.permutation(code_N) for _ in range(SHUFFLES)]
    chance = np.mean(_areas(x_NxD, apart_NxN, shuffled, names.size), 0)
    scores = [
        Score(name, float(v), float(v - r), float(v + r), rows.size, interval=interval, note=note)
        for name, v, r in zip(NAMES, values, reach, strict=True)
    ]
    return scores + [
        Score(name, float(v), n=rows.size, of="shuffled labels", note=note)
        for name, v in zip(NAMES, chance, strict=True)
    ]


def _areas(x_NxD, apart_NxN, codes: list[np.ndarray], classes: int) -> np.ndarray:
    """ROGI and ROGI-XD of several labellings of the same cells, [labellings, 2]."""
    n = len(x_NxD)
    box = max(np.sqrt((np.ptp(x_NxD, axis=0) ** 2).sum()), np.finfo(float).tiny)
    merges = linkage(squareform(apart_NxN / box, checks=False), "complete")
    thresholds = [merges[0, 2]]
    for at in merges[:, 2]:
        if at >= thresholds[-1] + STEP:
            thresholds.append(at)
    numbers = np.unique(np.rint(np.geomspace(2, n - 1, LEVELS)).astype(int))[::-1]
    areas = []
    for name, cut_at in (("rogi", thresholds), ("rogi_xd", np.unique(merges[n - 1 - numbers, 2]))):
        cuts = [fcluster(merges, at, "distance") - 1 for at in cut_at]
        cuts = [np.arange(n), *cuts, np.zeros(n, int)]
        spread_LxT = np.array([[_spread(code_N, cut, classes) for cut in cuts] for code_N in codes])
        clusters = np.array([cut.max() + 1 for cut in cuts])
        on = [0, *cut_at, 1] if name == "rogi" else 1 - np.log(clusters) / np.log(n)
        areas.append(spread_LxT[:, 0] - np.trapezoid(spread_LxT, on))
    return np.stack(areas, 1)


def _spread(code_N: np.ndarray, cluster_N: np.ndarray, classes: int) -> float:
    """Spread of the classes' shares between clusters, in [0, 1]."""
    size = (cluster_N.max() + 1, classes)
    count_CxK = np.bincount(cluster_N * classes + code_N, minlength=size[0] * classes).reshape(size)
    cells_C = count_CxK.sum(1)
    deviation_CxK = count_CxK / cells_C[:, None] - count_CxK.sum(0) / cells_C.sum()
    variance = (cells_C @ deviation_CxK**2).sum() / cells_C.sum()
    return float(np.sqrt(classes / (classes - 1) * variance))


def _halves(donors, n: int, rng) -> tuple[list[np.ndarray], float, str]:
    """Rows of random halves, (units kept) / (units left out), and what was halved."""
    unit_N, what = np.arange(n), "cells"
    if donors is not None and (np.asarray(donors, str) != "").all():
        names, donor_N = np.unique(np.asarray(donors, str), return_inverse=True)
        if names.size >= FEWEST_DONORS:
            unit_N, what = donor_N, f"{names.size} donors"
    units = unit_N.max() + 1
    kept = (units + 1) // 2
    halves = []
    for _ in range(HALVES):
        half = np.flatnonzero(np.isin(unit_N, rng.permutation(units)[:kept]))
        halves.append(half)
    return halves, kept / (units - kept), f"{HALVES} halves of {what}"
