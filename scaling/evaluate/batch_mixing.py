"""Embeddings with labels and batches in; how well types stay apart and batches mix, out."""

import importlib.metadata
import warnings

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

with warnings.catch_warnings():
    # scib_metrics imports umap, which says that a part not used here needs TensorFlow.
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

NEIGHBOURS = 15  # with the cell itself, as in scanpy and scIB
RESOLUTIONS = tuple(tenths / 10 for tenths in range(1, 21))
COMPONENTS = 50  # of the principal-component regression, as in scIB
ROUNDING = 1e-12  # of a float64 sum, relative
BIOLOGY = ("asw_label", "nmi", "ari")
BATCH = ("batch_score", "pcr_score")

Scores = dict[str, tuple[float | None, str]]


def packages() -> str:
    """Packages that decide these scores, with versions; numbers differ between versions."""
    names = ("scib-metrics", "scikit-learn", "umap-learn", "igraph")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def integration(
    embedding_NxD: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    before_NxG: np.ndarray,
    *,
    seed: int,
) -> Scores:
    """Score an embedding that was not fitted to these cells as if it were an integration.

    The definitions of scIB (Luecken et al., Nature Methods 2022), combined as in Kedzierska et
    al. (Genome Biology 2025). All lie in [0, 1] but ari, and avg_bio through it, which can fall
    below 0; higher is better.

      asw_label    mean silhouette of the labels, (s + 1) / 2
      nmi          best over Leiden clusterings at 20 resolutions 0.1, 0.2 ... 2.0 of the graph
                   of 15 exact neighbours with UMAP weights
      ari          of the clustering with the best nmi
      avg_bio      mean of the three
      batch_score  mean over labels of 1 - |silhouette of the batches within the label|; a label
                   that lies in one batch only is left out
      pcr_score    max(0, (before - after) / before), the share of the input's batch variance
                   that the embedding lost; see batch_variance
      average_batch_score  mean of the last two

    Args:
      embedding_NxD: floats, one row per cell; distances are taken in float32.
      labels, batch: one name per cell, no entry missing.
      before_NxG: what the embedding is compared with in pcr_score: the cells' log-normalised
        expression of highly variable genes.
      seed: of the Leiden clusterings.

    Returns:
      For each score its value and a note. Where the cells cannot give a score (one batch, one
      label) the value is None and the note says why; a mean with such a part is None too.

    Raises:
      ValueError: shapes disagree, names are missing, a value is not finite, or too few cells.
    """
    labels, batch = _names("labels", labels), _names("batch", batch)
    _check(embedding_NxD, labels, batch, before_NxG)
    x_NxD = np.ascontiguousarray(embedding_NxD, np.float32)
    if batch_variance(x_NxD, batch) is None:
        # Clusters of a graph of nothing but ties would score about 0.4 in nmi.
        scores = dict.fromkeys(BIOLOGY + BATCH, (None, "all cells have the same embedding"))
    else:
        scores = {**_biology(x_NxD, labels, seed), **_batch(x_NxD, labels, batch, before_NxG)}
    scores["avg_bio"] = _mean(scores, BIOLOGY)
    scores["average_batch_score"] = _mean(scores, BATCH)
    return scores


def batch_variance(x_NxF: np.ndarray, batch: np.ndarray) -> float | None:
    """Share of the variance along the leading 50 components that lies between batches, in [0, 1].

    Principal-component regression (Buettner et al., Nature Methods 2019): the R2 of each
    component on the batch, weighted by the component's variance. The weights cancel R2's
    denominators, which leaves the sum of squares between batches over the total. 50 components
    as in scIB: over all of them, the noise of 2,000 genes would hide the input's batch variance,
    and every embedding of few dimensions would seem to add some. None if nothing varies.
    """
    x_NxF = np.asarray(x_NxF, np.float64)
    scale = np.abs(x_NxF).max()
    x_NxF = x_NxF - x_NxF.mean(0)
    # Centring leaves rounding errors of this size where all cells are equal.
    if np.abs(x_NxF).max() <= ROUNDING * scale:
        return None
    if min(x_NxF.shape) > COMPONENTS:  # up to there they are a rotation and change no sum
        # Lanczos iterations to machine precision: the start vector decides nothing.
        x_NxF = PCA(COMPONENTS, svd_solver="arpack", random_state=0).fit_transform(x_NxF)
    between = 0.0
    for name in np.unique(batch):
        members = batch == name
        between += members.sum() * np.square(x_NxF[members].mean(0)).sum()
    return float(between / np.square(x_NxF).sum())


def _biology(x_NxD: np.ndarray, labels: np.ndarray, seed: int) -> Scores:
    n_labels = np.unique(labels).size
    if not 2 <= n_labels < labels.size:
        return dict.fromkeys(BIOLOGY, (None, f"{n_labels} label(s) in {labels.size} cells"))
    distances, indices = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x_NxD).kneighbors(x_NxD)
    graph = NeighborsResults(indices=indices, distances=distances)
    clusterings = [
        scib_metrics.nmi_ari_cluster_labels_leiden(
            graph, labels, optimize_resolution=False, resolution=resolution, seed=seed
        )
        for resolution in RESOLUTIONS
    ]
    best = max(clusterings, key=lambda clustering: clustering["nmi"])
    return {
        "asw_label": (float(scib_metrics.silhouette_label(x_NxD, labels)), ""),
        "nmi": (float(best["nmi"]), ""),
        "ari": (float(best["ari"]), ""),
    }


def _batch(
    x_NxD: np.ndarray, labels: np.ndarray, batch: np.ndarray, before_NxG: np.ndarray
) -> Scores:
    if np.unique(batch).size < 2:
        return dict.fromkeys(BATCH, (None, "one batch"))
    scores: Scores = {}
    if any(_has_silhouette(batch[labels == label]) for label in np.unique(labels)):
        scores["batch_score"] = (float(scib_metrics.silhouette_batch(x_NxD, labels, batch)), "")
    else:
        scores["batch_score"] = (None, "no label lies in two batches")
    before, after = batch_variance(before_NxG, batch), batch_variance(x_NxD, batch)
    if before is None or before < ROUNDING:
        scores["pcr_score"] = (None, "the input has no batch variance to remove")
    else:
        scores["pcr_score"] = (max(0.0, (before - after) / before), "")
    return scores


def _has_silhouette(batch: np.ndarray) -> bool:
    return 2 <= np.unique(batch).size < batch.size


def _mean(scores: Scores, parts: tuple[str, ...]) -> tuple[float | None, str]:
    """Mean of the named scores; None, with their notes, where one of them is None."""
    missing = [f"{part}: {scores[part][1]}" for part in parts if scores[part][0] is None]
    if missing:
        return None, "; ".join(missing)
    return float(np.mean([scores[part][0] for part in parts])), ""


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
