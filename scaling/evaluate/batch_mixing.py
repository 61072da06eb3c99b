"""Embeddings with labels and batches in; how well types stay apart and batches mix, out."""

import importlib.metadata
from collections.abc import Callable

import numpy as np
import sklearn
from sklearn.metrics import silhouette_samples

from scaling.evaluate import neighbourhoods, weighted
from scaling.evaluate.components import ROUNDING, batch_share, leading
from scaling.evaluate.intervals import Bootstrap, Score

NEIGHBOURS = neighbourhoods.GRAPH  # fewest cells
RESOLUTIONS = tuple(tenths / 10 for tenths in range(1, 21))
WORKING_MEMORY = 64  # MiB of distances at a time
BIOLOGY = ("asw_label", "nmi", "ari")
BATCH = ("batch_score", "pcr_score")
LABELS = (*BIOLOGY, "clisi", "graph_connectivity")
ISOLATED = ("isolated_labels_asw", "isolated_labels_f1")
BATCHES = (*BATCH, "pcr_before", "pcr_after", "ilisi", "kbet", *ISOLATED)
NAMES = (*BIOLOGY, "avg_bio", *BATCH, "average_batch_score", *LABELS[3:], *BATCHES[2:])

# A score as a function of how often each cell counts, with its cells; or why there is none.
Found = dict[str, tuple[Callable[[np.ndarray], np.ndarray], int] | str]


def packages() -> str:
    """Packages that decide these scores, with versions; numbers differ between versions."""
    names = ("scib-metrics", "scikit-learn", "umap-learn", "pynndescent", "igraph", "scipy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def integration(
    embedding_NxD: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    before_NxG: np.ndarray,
    *,
    donors: np.ndarray | None = None,
    seed: int,
) -> list[Score]:
    """Score an embedding that was not fitted to these cells as if it were an integration.

    The definitions of scIB (Luecken et al., Nature Methods 2022), combined as in Kedzierska et
    al. (Genome Biology 2025). All lie in [0, 1] but ari, and avg_bio through it, which can fall
    below 0; higher is better, but for pcr_before and pcr_after.

      asw_label    mean silhouette of the labels, (s + 1) / 2
      nmi          best over Leiden clusterings at 20 resolutions 0.1, 0.2 ... 2.0 of the graph
                   of 15 exact neighbours with UMAP weights
      ari          of the clustering with the best nmi
      avg_bio      mean of the three
      batch_score  mean over labels of 1 - |silhouette of the batches within the label|; a label
                   that lies in one batch only is left out
      pcr_score    max(0, (before - after) / before), the share of the input's batch variance
                   that the embedding lost
      average_batch_score  mean of the last two
      pcr_before, pcr_after  the two parts of pcr_score, see `batch_variance`
      ilisi        (median LISI of the batches - 1) / (batches - 1), among 90 neighbours
      clisi        (labels - median LISI of the labels) / (labels - 1)
      kbet         mean over labels of the share of cells whose neighbourhood holds the batches in
                   the label's proportions, see `neighbourhoods.kbet_accepted`
      graph_connectivity   mean over labels of the share of cells in the label's largest connected
                   part of the graph
      isolated_labels_asw  asw_label's silhouettes, averaged over each of the labels that lie in
                   fewest batches, then over these
      isolated_labels_f1   of these labels' best cluster among those of the 20 resolutions

    Intervals: the embedding, neighbours, clusterings and components stay as they are and only how
    often each cell counts is drawn. Batches are never what is drawn: where one of them is a single
    donor, cells are drawn instead of donors.

    Against the original scib 1.1.7 on the same embedding and clustering (tests/test_scib.py: two
    real sets, each as HVG, PCA and Harmony): all but ilisi, clisi and kbet equal to 1e-4. Of LISI
    the arithmetic is the same to 1e-4, the neighbours are not: the original takes those of the
    shortest paths over the graph of 15 with its similarities as lengths, so that the least similar
    come first; here they are the nearest cells. ilisi differs by -0.22 to 0.18, clisi by less than
    0.01. Of kBET the original takes the cells that most walks over the graph lead to, scib-metrics
    and this the nearest in a diffusion map: here 0.01 to 0.14 higher.

    Args:
      embedding_NxD: floats, one row per cell; distances are taken in float32.
      labels, batch: one name per cell, no entry missing.
      before_NxG: what the embedding is compared with in pcr_score: the cells' log-normalised
        expression of highly variable genes.
      donors: one name per cell, "" where unknown, or None; for the intervals.
      seed: of the Leiden clusterings and of the intervals.

    Returns:
      One Score for each of NAMES. Where the cells cannot give a score (one batch, one label) the
      value is None and the note says why; a mean with such a part is None too.

    Raises:
      ValueError: shapes disagree, names are missing, a value is not finite, or too few cells.
    """
    labels, batch = _names("labels", labels), _names("batch", batch)
    _check(embedding_NxD, labels, batch, before_NxG)
    x_NxD = np.ascontiguousarray(embedding_NxD, np.float32)
    if batch_variance(x_NxD, batch) is None:
        # Clusters of a graph of nothing but ties would score about 0.4 in nmi.
        found = dict.fromkeys(NAMES, "all cells have the same embedding")
    else:
        neighbours = neighbourhoods.search(x_NxD)
        found = _scores(x_NxD, labels, batch, before_NxG, neighbours, seed)
    found["avg_bio"] = _mean(found, BIOLOGY)
    found["average_batch_score"] = _mean(found, BATCH)
    donors = None if donors is None or _is_one_donor(batch, donors) else donors
    bootstrap = Bootstrap(len(x_NxD), donors, seed=seed)
    return [
        Score(name, None, note=found[name])
        if isinstance(found[name], str)
        else bootstrap.score(name, found[name][0], n=found[name][1])
        for name in NAMES
    ]


def batch_variance(x_NxF: np.ndarray, batch: np.ndarray) -> float | None:
    """Share of the variance along the leading 50 components that lies between batches, in [0, 1].

    Principal-component regression (Buettner et al., Nature Methods 2019): the R2 of each
    component on the batch, weighted by the component's variance. The weights cancel R2's
    denominators, which leaves the sum of squares between batches over the total. 50 components
    as in scIB: over all of them, the noise of 2,000 genes would hide the input's batch variance,
    and every embedding of few dimensions would seem to add some. None if nothing varies.
    """
    x_NxK = leading(x_NxF)
    if x_NxK is None:
        return None
    return float(batch_share(x_NxK, batch)(np.ones((1, len(batch))))[0])


def _scores(x_NxD, labels, batch, before_NxG, neighbours, seed: int) -> Found:
    """All scores but the means of others."""
    n = len(labels)
    in_batches = {name: np.unique(batch[labels == name]).size for name in np.unique(labels)}
    n_labels, n_batches = len(in_batches), np.unique(batch).size
    found: Found = {}
    if n_batches < 2:
        found |= dict.fromkeys(BATCHES, "one batch")
    else:
        found |= _batch(x_NxD, labels, batch, before_NxG, neighbours)
    if not 2 <= n_labels < n:
        reason = f"{n_labels} label(s) in {n} cells"
        return found | dict.fromkeys((*LABELS, *ISOLATED), reason)
    graph = neighbourhoods.nearest(neighbours, neighbourhoods.GRAPH)
    silhouette_N = (_silhouettes(x_NxD, labels) + 1) / 2
    clusterings = neighbourhoods.clusterings(graph, RESOLUTIONS, seed)
    nmi = [weighted.nmi(labels, clusters) for clusters in clusterings]
    best = int(np.argmax([score(np.ones((1, n)))[0] for score in nmi]))
    label_lisi = weighted.median(neighbourhoods.lisi(neighbours, labels))
    connected_N = neighbourhoods.in_largest_component(graph, labels)
    found |= {
        "asw_label": (weighted.mean_of_means(silhouette_N), n),
        "nmi": (nmi[best], n),
        "ari": (weighted.ari(labels, clusterings[best]), n),
        "clisi": (lambda w_SxN: (n_labels - label_lisi(w_SxN)) / (n_labels - 1), n),
        "graph_connectivity": (weighted.mean_of_means(connected_N, labels), n),
    }
    fewest = min(in_batches.values())
    isolated = [name for name, batches in in_batches.items() if batches == fewest]
    if fewest == n_batches:
        if n_batches > 1:
            found |= dict.fromkeys(ISOLATED, "every label lies in all batches")
        return found
    of_isolated_N = np.isin(labels, isolated)
    width = weighted.mean_of_means(np.where(of_isolated_N, silhouette_N, np.nan), labels)
    found["isolated_labels_asw"] = (width, int(of_isolated_N.sum()))
    found["isolated_labels_f1"] = (weighted.best_f1(labels, isolated, clusterings), n)
    return found


def _batch(x_NxD, labels, batch, before_NxG, neighbours) -> Found:
    n, n_batches = len(batch), np.unique(batch).size
    found: Found = {}
    mixed_N = np.full(n, np.nan)
    for label in np.unique(labels):
        members = labels == label
        if 2 <= np.unique(batch[members]).size < members.sum():
            mixed_N[members] = 1 - np.abs(_silhouettes(x_NxD[members], batch[members]))
    found["batch_score"] = _per_label(mixed_N, labels, "no label lies in two batches")
    around = neighbourhoods.nearest(neighbours, neighbourhoods.TESTED)
    accepted_N = neighbourhoods.kbet_accepted(around, labels, batch)
    found["kbet"] = _per_label(accepted_N, labels, "no label of enough cells lies in two batches")
    batch_lisi = weighted.median(neighbourhoods.lisi(neighbours, batch))
    found["ilisi"] = (lambda w_SxN: (batch_lisi(w_SxN) - 1) / (n_batches - 1), n)
    after = batch_share(leading(x_NxD), batch)
    found["pcr_after"] = (after, n)
    before_NxK, one_each = leading(before_NxG), np.ones((1, n))
    if before_NxK is None or batch_share(before_NxK, batch)(one_each)[0] < ROUNDING:
        return found | dict.fromkeys(
            ("pcr_before", "pcr_score"), "the input has no batch variance to remove"
        )
    before = batch_share(before_NxK, batch)

    def removed(w_SxN: np.ndarray) -> np.ndarray:
        had, has = before(w_SxN), after(w_SxN)
        kept = np.divide(has, had, out=np.full(len(had), np.nan), where=had > ROUNDING)
        return np.maximum(0.0, 1 - kept)

    return found | {"pcr_before": (before, n), "pcr_score": (removed, n)}


def _per_label(values_N: np.ndarray, labels: np.ndarray, reason: str):
    counted = int(np.isfinite(values_N).sum())
    return (weighted.mean_of_means(values_N, labels), counted) if counted else reason


def _silhouettes(x_NxD: np.ndarray, names: np.ndarray) -> np.ndarray:
    with sklearn.config_context(working_memory=WORKING_MEMORY):
        return silhouette_samples(x_NxD, names).astype(np.float64)


def _mean(found: Found, parts: tuple[str, ...]):
    """Mean of the named scores; their reasons, where one of them has none."""
    missing = [f"{part}: {found[part]}" for part in parts if isinstance(found[part], str)]
    if missing:
        return "; ".join(missing)
    scores, counted = zip(*(found[part] for part in parts), strict=True)
    return lambda w_SxN: np.mean([score(w_SxN) for score in scores], axis=0), max(counted)


def _is_one_donor(batch: np.ndarray, donors: np.ndarray) -> bool:
    """Whether a batch is the cells of a single donor."""
    if np.shape(donors) != batch.shape:  # Bootstrap says so
        return False
    donors = np.asarray(donors, str)
    return any(np.unique(donors[batch == name]).size < 2 for name in np.unique(batch))


def _names(what: str, names: np.ndarray) -> np.ndarray:
    names = np.asarray(names, object)
    missing = sum(name is None or name != name or str(name) == "" for name in names)
    if missing:
        raise ValueError(f"{what}: {missing} of {names.size} cells have none; leave them out")
    return names.astype(str)


def _check(
    embedding_NxD: np.ndarray, labels: np.ndarray, batch: np.ndarray, before_NxG: np.ndarray
) -> None:
    n_cells = len(embedding_NxD)
    shapes = {
        "embedding": np.shape(embedding_NxD),
        "labels": labels.shape,
        "batch": batch.shape,
        "before": np.shape(before_NxG),
    }
    matrices = len(shapes["embedding"]) == len(shapes["before"]) == 2
    if not matrices or any(shape[0] != n_cells for shape in shapes.values()):
        raise ValueError(f"shapes {shapes}: pass the same cells to all, the matrices dense")
    for name, x in (("embedding", embedding_NxD), ("before", before_NxG)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} holds NaN or infinity; drop or recompute those cells")
    if n_cells < NEIGHBOURS:
        raise ValueError(
            f"{n_cells} cells, and the neighbour graph needs {NEIGHBOURS}: score more cells"
        )
