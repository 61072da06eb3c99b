"""Nearest neighbours, searched once -> what each cell contributes to the scores of a graph."""

import random
import warnings

import igraph
import numpy as np
from scipy import sparse, stats
from scipy.sparse import csgraph
from scipy.sparse.linalg import eigsh
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

with warnings.catch_warnings():
    # scib_metrics imports umap, which says that a part not used here needs TensorFlow.
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    from scib_metrics.nearest_neighbors import NeighborsResults
    from scib_metrics.utils import compute_simpson_index

NEIGHBOURS = 90  # of LISI, with the cell itself, as in scib-metrics
GRAPH = 15  # of clusterings and connectivity, as in scanpy and scIB
TESTED = 50  # of the graph that kBET walks on, as in scIB
ALPHA = 0.05  # of kBET's test
DIFFUSION = 100  # components of kBET's diffusion map
CELLS = 8_192  # of LISI at a time


def search(x_NxD: np.ndarray) -> NeighborsResults:
    """The 90 exact Euclidean neighbours of each cell, itself the first; all, of fewer cells.

    A cell's distance to itself is 0, where a search among all cells would give a rounding error.
    The UMAP graph counts distances from the nearest neighbour at more than 0 on, and would take
    the cell for its own.
    """
    others = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x_NxD)) - 1).fit(x_NxD)
    distances, indices = others.kneighbors()
    return NeighborsResults(
        indices=np.c_[np.arange(len(x_NxD)), indices],
        distances=np.c_[np.zeros(len(x_NxD)), distances],
    )


def nearest(neighbours: NeighborsResults, n: int) -> NeighborsResults:
    """The first n neighbours of each cell; all, where there are fewer."""
    return neighbours.subset_neighbors(min(n, neighbours.n_neighbors))


def lisi(neighbours: NeighborsResults, names: np.ndarray) -> np.ndarray:
    """Effective number of names around each cell, float64 [N], from 1 to their number.

    Local inverse Simpson's index (Korsunsky et al., Nature Methods 2019) with a perplexity of a
    third of the neighbours. NaN where no width of its kernel has that, as when all neighbours lie
    equally far.
    """
    kinds, codes_N = np.unique(names, return_inverse=True)
    simpson = [
        compute_simpson_index(
            knn_dists=neighbours.distances[first : first + CELLS],
            knn_idx=neighbours.indices[first : first + CELLS],
            row_idx=np.arange(first, min(first + CELLS, len(codes_N)))[:, None],
            labels=codes_N,
            n_labels=len(kinds),
            perplexity=neighbours.n_neighbors // 3,
        )
        for first in range(0, len(codes_N), CELLS)
    ]
    simpson_N = np.concatenate(simpson).astype(np.float64)
    return np.where(simpson_N > 0, 1 / simpson_N, np.nan)


def in_largest_component(graph: NeighborsResults, labels: np.ndarray) -> np.ndarray:
    """Whether each cell lies in the largest connected part of its label's cells, bool [N].

    Edges are those of the UMAP graph, which hold both ways, as in the original scIB. scib-metrics
    takes edges from a cell to its neighbours and asks for a way there and back, so that a cell
    that is nobody's neighbour is cut off.
    """
    edges = graph.knn_graph_connectivities.tocsr()
    found_N = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        _, part = csgraph.connected_components(edges[members][:, members], directed=False)
        found_N[members] = part == np.bincount(part).argmax()
    return found_N


def kbet_accepted(graph: NeighborsResults, labels: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Whether the batches around each cell are in the proportions of its label, float64 [N].

    kBET (Buettner et al., Nature Methods 2019): a chi-squared test, at 0.05, of the cell and the k
    nearest of its label; k is a quarter of the mean number of cells per batch, from 10 to 70
    (scIB). Near is in the diffusion map of the label's part of the graph, 100 components each
    weighted by e / (1 - e) of its eigenvalue e, as in scib-metrics; there neighbours are searched
    approximately, here exactly and within each connected part.

    1 is accepted, 0 is rejected. NaN, not tested: labels in one batch, or of no more than k cells,
    and connected parts of fewer than 3 k cells. Where these parts are more than a quarter of a
    label, all of its cells are rejected (scIB).
    """
    edges = graph.knn_graph_connectivities.tocsr()
    found_N = np.full(len(labels), np.nan)
    for label in tqdm(np.unique(labels), desc="kBET", unit="labels", leave=False):
        members = np.flatnonzero(labels == label)
        per_batch = np.unique(batch[members], return_counts=True)[1]
        k = int(np.clip(per_batch.mean() // 4, 10, 70))
        if len(per_batch) < 2 or len(members) <= k:
            continue
        part = csgraph.connected_components(edges[members][:, members], directed=False)[1]
        size = np.bincount(part)
        large = [0] if len(size) == 1 else np.flatnonzero(size >= 3 * k)
        tested = np.concatenate([members[part == p] for p in large] or [members[:0]])
        if len(tested) < 0.75 * len(members):
            found_N[members] = 0.0
            continue
        near = np.concatenate([_diffused(edges, members[part == p], k) for p in large])
        kinds, codes = np.unique(batch[tested], return_inverse=True)
        code_N = np.zeros(len(labels), int)
        code_N[tested] = codes
        seen_MxB = np.stack([(code_N[near] == kind).sum(1) for kind in range(len(kinds))], 1)
        due_B = np.bincount(codes) / len(codes) * near.shape[1]
        found_N[tested] = stats.chisquare(seen_MxB, due_B, axis=1).pvalue >= ALPHA
    return found_N


def _diffused(edges: sparse.csr_matrix, members: np.ndarray, k: int) -> np.ndarray:
    """Each member and the k members nearest to it in their diffusion map, int64 [M, k + 1]."""
    within = edges[members][:, members].astype(np.float64)
    for power in (1.0, 0.5):  # first the density of cells, then what is left to a unit sum
        scale = sparse.diags_array(np.asarray(within.sum(0)).ravel() ** -power)
        within = scale @ within @ scale
    count = min(DIFFUSION, len(members) - 1)
    start = np.random.default_rng(0).normal(size=len(members))
    values, vectors_MxK = eigsh(
        within, k=count, ncv=min(len(members), 3 * count // 2 + 1), which="LM", v0=start
    )
    # Of value 1 is only what does not diffuse; but for rounding it would be weighted by infinity.
    below_one = values < 1 - 1e-7
    weights = np.where(below_one, values / (1 - np.where(below_one, values, 0.0)), 1.0)
    map_MxK = vectors_MxK * weights
    others = NearestNeighbors(n_neighbors=k).fit(map_MxK).kneighbors(return_distance=False)
    return members[np.c_[np.arange(len(members)), others]]


def clusterings(
    graph: NeighborsResults, resolutions: tuple[float, ...], seed: int
) -> list[np.ndarray]:
    """Leiden clusters of the UMAP graph, int64 [N], for each resolution of the modularity."""
    edges = graph.knn_graph_connectivities
    clustered = igraph.Graph.Weighted_Adjacency(edges, mode="directed")
    clustered.to_undirected(mode="each")  # both edges of a pair, as scanpy and scib-metrics do
    found = []
    for resolution in tqdm(resolutions, desc="Leiden", unit="clusterings", leave=False):
        igraph.set_random_number_generator(random.Random(seed))
        leiden = clustered.community_leiden(
            objective_function="modularity", weights="weight", resolution=resolution
        )
        found.append(np.asarray(leiden.membership))
    return found
