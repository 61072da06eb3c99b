"""Embeddings with cell types in; how their distances agree with the Cell Ontology's out."""

import dataclasses
import functools

import networkx
import numpy as np
import scipy.linalg
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from scaling.corpus.cell_ontology import Ontology, match
from scaling.evaluate import cell_types
from scaling.evaluate.intervals import LARGEST, Bootstrap, Score
from scaling.evaluate.ontology import left_out

RESTART = 0.7  # of the walk, as scFM-Bench has it
DIMENSIONS = 256  # of the diffusion states' decomposition, as scFM-Bench has it
TRIMMED = 0.2  # of a type's cells on either side of each dimension, as scFM-Bench has it
FEWEST_CELLS = 10  # of a type, as scGraph has it
FEWEST_IN_BATCH = 100  # cells of a batch, as scGraph has it
SHUFFLES = 20
RANKED = {"onto_rwr_pearson": False, "onto_rwr_spearman": True}
FEWEST_TYPES = 5  # or a type's correlation is over fewer than four distances


def walk(ontology: Ontology, restart: float = RESTART) -> np.ndarray:
    """Where a random walk with restart ends, float64 [terms, terms]; rows sum to 1.

    Row i: the stationary distribution of a walk over is_a edges, taken both ways and all alike,
    that at each step starts again at term i with the given probability. Terms are in the order
    of ontology.is_a; one without any edge stays where it is.
    """
    edges_TxT = networkx.to_numpy_array(ontology.is_a.to_undirected())
    alone = edges_TxT.sum(1) == 0
    edges_TxT[alone, alone] = 1
    step_TxT = edges_TxT / edges_TxT.sum(1, keepdims=True)
    return restart * np.linalg.inv(np.eye(len(step_TxT)) - (1 - restart) * step_TxT)


def term_distances(ontology: Ontology, terms: list[str]) -> np.ndarray:
    """Distances between terms by random walk with restart, float64 [terms, terms].

    As scFM-Bench has them: the walk's distributions Q of n terms, log(Q + 1/n^2) - log(1/n^2),
    its leading 256 singular vectors, each times the root of its singular value (diffusion
    component analysis, Cho et al., RECOMB 2015), and Euclidean distances between these. About 10
    seconds for the 2,500 terms of the Cell Ontology, once per ontology.
    """
    row = {term: number for number, term in enumerate(ontology.is_a)}
    states_TxK = _diffusion(ontology)[[row[term] for term in terms]]
    return squareform(pdist(states_TxK)).round(6)  # siblings stay equally far, for the ranks


@functools.lru_cache(maxsize=1)
def _diffusion(ontology: Ontology) -> np.ndarray:
    state_TxT = walk(ontology)
    n = len(state_TxT)
    state_TxT = np.log(state_TxT + 1 / n**2) - np.log(1 / n**2)
    leading = [max(0, n - DIMENSIONS), n - 1]
    square_K, vectors_TxK = scipy.linalg.eigh(state_TxT @ state_TxT.T, subset_by_index=leading)
    return vectors_TxK * np.maximum(square_K, 0) ** 0.25


def graph_agreement(
    embedding_NxD: np.ndarray,
    labels: np.ndarray,
    ontology: Ontology,
    table: dict[str, str] | None = None,
    *,
    batches: np.ndarray | None = None,
    donors: np.ndarray | None = None,
    seed: int = 0,
) -> list[Score]:
    """scGraph-OntoRWR: do types that the Cell Ontology holds close lie close; higher is better.

    Wu et al. (Genome Biology 2025, scFM-Bench), after scGraph (Wang et al., Nature Biotechnology
    2025): types of at least 10 cells, the mean of each per dimension with 20 % of its cells cut
    off on either side, Euclidean distances between these means, and per type the Pearson
    correlation of its distances with those of term_distances, averaged over types. Four things
    differ from theirs: a type's distance to itself (0 in both) is left out, which lifts every
    correlation; the ontology's edges weigh the same, theirs by a language model's similarity of
    the terms' texts; labels of one term are one type; a correlation needs four other types, not
    all equally far in the ontology.

    Batches decide nothing in theirs. Where there are several, `of` "within batches" has the
    distances of each batch of at least 100 cells, over the type's largest as in scGraph and
    averaged over the batches that hold at least 10 cells of both types, so that a shift between
    batches does not move a type that few of them hold.

    The interval holds fixed which cells are cut off, as it does the embedding. `of` "shuffled
    labels" is the mean over 20 shuffles of the cells' types, without an interval. It is not 0:
    the mean of a rare type of few cells lies apart from all others whatever the type.

    Args:
      embedding_NxD: floats, one row per cell.
      labels: one per cell, "" where unknown.
      ontology, table: of read_ontology and read_labels.
      batches, donors: one name per cell, or None.
      seed: of the resamples.

    Returns:
      onto_rwr_pearson and onto_rwr_spearman in [-1, 1], pooled and, given batches, within them; and
      pooled with shuffled labels.

    Raises:
      ValueError: shapes disagree or the embedding is not finite.
    """
    labels = np.asarray(labels, str)
    cell_types.check("all", embedding_NxD, labels)
    found, unmatched = match(labels, ontology, table)
    term_N = np.array([found.get(label, "") for label in labels], str)
    terms, cells = np.unique(term_N[term_N != ""], return_counts=True)
    few, terms = terms[cells < FEWEST_CELLS], terms[cells >= FEWEST_CELLS]
    kept = np.isin(term_N, terms)
    notes = [f"{len(terms)} types", f"restart {RESTART}", f"Cell Ontology {ontology.release}"]
    notes += [f"below {FEWEST_CELLS} cells: {', '.join(few)}"] if few.size else []
    notes += [said] if (said := left_out(labels, found, unmatched)) else []
    type_N = np.searchsorted(terms, term_N[kept])
    x_NxD = np.asarray(embedding_NxD[kept], np.float32)
    donors, batches = (v if v is None else np.asarray(v, str)[kept] for v in (donors, batches))
    bootstrap = Bootstrap(len(x_NxD), donors, seed=seed)
    scores = _both(bootstrap, [_trimmed(x_NxD, type_N)], terms, ontology, of="", notes=notes)
    scores += _chance(x_NxD, type_N, terms, ontology, scores, notes, seed)
    if batches is not None:
        names, sizes = np.unique(batches[batches != ""], return_counts=True)
        large = names[sizes >= FEWEST_IN_BATCH]
        notes = [f"{large.size} batches of {FEWEST_IN_BATCH} cells or more", *notes]
        groups = [_trimmed(x_NxD, np.where(batches == name, type_N, -1)) for name in large]
        groups = [group for group in groups if group]
        scores += _both(bootstrap, groups, terms, ontology, of="within batches", notes=notes)
    return scores


def _both(bootstrap, groups, terms, ontology, *, of, notes) -> list[Score]:
    """The two scores of distances averaged over groups of cells."""
    together_TxT = np.zeros((len(terms), len(terms)), bool)
    for group in groups:
        here = np.isin(np.arange(len(terms)), list(group))
        together_TxT |= here[:, None] & here & ~np.eye(len(terms), dtype=bool)
    if not (together_TxT.sum(0) >= FEWEST_TYPES - 1).any():
        why = f"no type beside {FEWEST_TYPES - 1} others"
        return [Score(name, None, of=of, note="; ".join([why, *notes])) for name in RANKED]
    reference_TxT = term_distances(ontology, list(terms))
    scores = []
    for name, ranked in RANKED.items():

        def statistic(weights_SxN, ranked=ranked):
            apart_SxTxT = _distances(weights_SxN, groups, len(terms))
            return _agreement(apart_SxTxT, reference_TxT, together_TxT, ranked)

        score = bootstrap.score(name, statistic, of=of, note="; ".join(notes))
        if score.value is None:
            note = "; ".join(["a type's distances do not differ", *notes])
            score = dataclasses.replace(score, note=note)
        scores.append(score)
    return scores


def _chance(x_NxD, type_N, terms, ontology, scores, notes, seed) -> list[Score]:
    """The pooled scores with cells' types shuffled; None where those are."""
    if any(score.value is None for score in scores):
        return [dataclasses.replace(score, of="shuffled labels", value=None) for score in scores]
    rng, reference_TxT = np.random.default_rng(seed), term_distances(ontology, list(terms))
    others_TxT = ~np.eye(len(terms), dtype=bool)
    apart = []
    for _ in range(SHUFFLES):
        groups = [_trimmed(x_NxD, rng.permutation(type_N))]
        apart.append(_distances(np.ones((1, len(type_N))), groups, len(terms)))
    apart_SxTxT = np.concatenate(apart)
    values = [_agreement(apart_SxTxT, reference_TxT, others_TxT, r).mean() for r in RANKED.values()]
    return [
        Score(score.name, float(value), n=score.n, of="shuffled labels", note="; ".join(notes))
        for score, value in zip(scores, values, strict=True)
    ]


def _trimmed(x_NxD: np.ndarray, type_N: np.ndarray) -> dict[int, tuple[np.ndarray, ...]]:
    """Cells of each type of at least 10, what counts of them in each dimension, and its values."""
    group = {}
    for t in np.unique(type_N[type_N >= 0]):
        cells = np.flatnonzero(type_N == t)
        if (n := len(cells)) >= FEWEST_CELLS:
            rank_MxD = x_NxD[cells].argsort(0, kind="stable").argsort(0, kind="stable")
            cut = int(TRIMMED * n)
            inside_MxD = (rank_MxD >= cut) & (rank_MxD < n - cut)
            group[int(t)] = cells, inside_MxD, x_NxD[cells] * inside_MxD
    return group


def _distances(weights_SxN: np.ndarray, groups: list, types: int) -> np.ndarray:
    """Distances over the largest of the column, mean over groups, [S, T, T]; NaN where none."""
    shape = (len(weights_SxN), types, types)
    total_SxTxT, count_SxTxT = np.zeros(shape), np.zeros(shape)
    for group in groups:
        here = list(group)
        dims = group[here[0]][1].shape[1] if here else 0
        together = max(1, LARGEST // max(1, len(here) * dims))
        for first in range(0, len(weights_SxN), together):
            some_SxN = weights_SxN[first : first + together]
            means_SxTxD = np.stack([_means(some_SxN, *group[t]) for t in here], 1)
            for s, means_TxD in enumerate(means_SxTxD, first):
                apart_TxT = squareform(pdist(means_TxD))
                largest_T = np.fmax.reduce(apart_TxT, 0)
                apart_TxT = np.divide(apart_TxT, largest_T, where=largest_T > 0, out=apart_TxT)
                known_TxT = np.isfinite(apart_TxT)
                total_SxTxT[s][np.ix_(here, here)] += np.where(known_TxT, apart_TxT, 0)
                count_SxTxT[s][np.ix_(here, here)] += known_TxT
    nothing = np.full(shape, np.nan)
    return np.divide(total_SxTxT, count_SxTxT, out=nothing, where=count_SxTxT > 0)


def _means(weights_SxN, cells, inside_MxD, values_MxD) -> np.ndarray:
    """Means of the values that count, [S, D]; NaN where a resample has none of them."""
    weights_SxM = weights_SxN[:, cells]
    weight_SxD = weights_SxM @ inside_MxD
    out = np.full(weight_SxD.shape, np.nan)
    return np.divide(weights_SxM @ values_MxD, weight_SxD, out=out, where=weight_SxD > 0)


def _agreement(apart_SxTxT, reference_TxT, together_TxT, ranked: bool) -> np.ndarray:
    """Mean over types of the correlation of their distances to the other types, [S]."""
    correlations = []
    for t in np.flatnonzero(together_TxT.sum(0) >= FEWEST_TYPES - 1):
        others = together_TxT[t]
        x_SxP, y_P = apart_SxTxT[:, others, t], reference_TxT[others, t]
        if np.ptp(y_P) == 0:  # all others equally far: any order agrees
            continue
        if ranked:
            x_SxP, y_P = rankdata(x_SxP, axis=1), rankdata(y_P)
        x_SxP, y_P = x_SxP - x_SxP.mean(1, keepdims=True), y_P - y_P.mean()
        norm_S = np.sqrt((x_SxP**2).sum(1) * (y_P**2).sum())
        none = np.full(len(x_SxP), np.nan)
        correlations.append(np.divide(x_SxP @ y_P, norm_S, out=none, where=norm_S > 0))
    return np.mean(correlations, 0) if correlations else np.full(len(apart_SxTxT), np.nan)
