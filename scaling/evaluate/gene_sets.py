"""Gene embeddings with labelled genes and gene sets in; AUROCs beside plain baselines out."""


import numpy as np
from scipy import sparse
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from scaling.evaluate.baselines import log_normalise
from scaling.evaluate.intervals import Bootstrap, Score

FOLDS = 5
PENALTIES = np.logspace(-4, 1, 6)  # C of the logistic regression
FEWEST_GENES = 10  # of a class, or of a gene set


def expression_baseline(
    counts_NxG: sparse.csr_matrix, total_N: np.ndarray | None = None
) -> np.ndarray:
    """What a gene's expression alone says of it, float32 [G, 2]; NaN for genes never seen.

    Mean log-normalised expression and log of the share of cells that show the gene: a gene
    embedding that is no better has learnt how often a gene is seen.
    """
    x_NxG = log_normalise(counts_NxG, total_N)
    mean_G = np.asarray(x_NxG.mean(0), np.float64).ravel()
    seen_G = np.asarray((x_NxG > 0).sum(0), np.float64).ravel()
    share_G = np.log(np.maximum(seen_G, 1) / x_NxG.shape[0])
    return np.where(seen_G[:, None] > 0, np.stack([mean_G, share_G], 1), np.nan).astype(np.float32)


def label_auroc(
    embedding_VxD: np.ndarray,
    genes: np.ndarray,
    labels: dict[str, bool],
    expression_Vx2: np.ndarray,
    *,
    of: str,
    seed: int = 0,
) -> list[Score]:
    """How well a logistic probe on gene embeddings tells labelled genes apart, by held-out genes.

    Five folds of genes, stratified by label; on the other four, features are standardised and
    the L2 penalty of a class-weighted logistic regression is chosen by the AUROC of five inner
    folds. The score is the share of pairs of a positive and a negative gene of the same fold that
    the probe puts in order (the mean over folds of the AUROC, large folds counting more;
    probabilities of different folds are not compared). Beside it, on the same genes and folds,
    stand the expression of the gene alone, a random embedding of the same width, and by how much
    the embedding beats expression.

    Intervals draw genes, the fitted probes held fixed, and the one random embedding with them: it
    strays from 0.5 by more than its interval says.

    Args:
      embedding_VxD: floats, a row per gene; NaN rows are genes that were never seen.
      genes: V names, in the ids of labels (vocabulary.read_gene_names).
      labels: of gene_tables.
      expression_Vx2: of expression_baseline over the same V genes.
      of: name of the labels.
      seed: of the folds, the random embedding and the resamples.

    Returns:
      gene_label_auroc, gene_label_auroc_expression, gene_label_auroc_random,
      gene_label_auroc_gain (embedding minus expression) and gene_label_coverage, the share of
      labelled genes that are scored.

    Raises:
      ValueError: shapes disagree, a gene stands twice, or a row is partly NaN.
    """
    seen_V = _seen(embedding_VxD, genes, expression_Vx2)
    row = {gene: v for v, gene in enumerate(genes) if seen_V[v]}
    rows = np.array([row[gene] for gene in sorted(labels) if gene in row], int)
    label_M = np.array([labels[gene] for gene in sorted(labels) if gene in row], bool)
    positive, all_positive = int(label_M.sum()), sum(labels.values())
    note = (
        f"{positive} of {all_positive} positive and {len(rows) - positive} of "
        f"{len(labels) - all_positive} negative genes are seen"
    )
    share = len(rows) / len(labels) if labels else None
    coverage = Score("gene_label_coverage", share, n=len(labels), of=of, note=note)
    names = [f"gene_label_auroc{x}" for x in ("", "_expression", "_random", "_gain")]
    if min(positive, len(rows) - positive) < FEWEST_GENES:
        note = f"fewer than {FEWEST_GENES} seen genes of a label; {note}"
        return [Score(name, None, n=len(rows), of=of, note=note) for name in names] + [coverage]
    random_MxD = _random((len(rows), embedding_VxD.shape[1]), seed)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(rows, label_M))
    compared = embedding_VxD[rows], expression_Vx2[rows], random_MxD
    bar = tqdm([(x_MxD, *fold) for x_MxD in compared for fold in folds], desc="gene labels",
               unit="fold", leave=False, delay=5)  # fmt: skip
    found = [(test, _probe(x_MxD, label_M, train, test, seed)) for x_MxD, train, test in bar]
    firsts = range(0, len(found), FOLDS)
    embedding, expression, chance = (found[first : first + FOLDS] for first in firsts)
    bootstrap = Bootstrap(len(rows), seed=seed, units="genes")
    statistics = (
        lambda w_SxM: _auroc(w_SxM, label_M, embedding),
        lambda w_SxM: _auroc(w_SxM, label_M, expression),
        lambda w_SxM: _auroc(w_SxM, label_M, chance),
        lambda w_SxM: _auroc(w_SxM, label_M, embedding) - _auroc(w_SxM, label_M, expression),
    )
    how = f"{FOLDS} folds by gene, seed {seed}"
    scores = [
        bootstrap.score(name, statistic, of=of, note=note, split=how)
        for name, statistic in zip(names, statistics, strict=True)
    ]
    return [*scores, coverage]


def set_auroc(
    embedding_VxD: np.ndarray,
    genes: np.ndarray,
    sets: dict[str, tuple[str, ...]],
    expression_Vx2: np.ndarray,
    *,
    of: str = "",
    seed: int = 0,
) -> list[Score]:
    """How well the members of a gene set are found by what is close to its other members.

    For each set with 10 seen members or more, five folds of members: all genes outside the set
    and the fold's members are ranked by the cosine between their embedding and the mean of the
    other members' (embeddings centred on the mean of all seen genes, then of length 1), and the
    AUROC of the members is averaged over folds. Beside it, on the same folds, expression alone
    (nearness to the mean of the other members, standardised) and a random embedding.

    Intervals draw whole sets, which share genes: take them as too narrow rather than too wide.

    Args:
      embedding_VxD, genes, expression_Vx2: as for label_auroc.
      sets: of gene_tables.read_gmt.
      of: name of the collection of sets.
      seed: of the folds, the random embedding and the resamples.

    Returns:
      gene_set_auroc, gene_set_auroc_expression, gene_set_auroc_random, gene_set_auroc_gain
      (means over sets) and gene_set_coverage, the share of all sets' members that are seen.

    Raises:
      ValueError: as for label_auroc.
    """
    seen_V = _seen(embedding_VxD, genes, expression_Vx2)
    genes = np.asarray(genes, str)[seen_V]
    row = {gene: v for v, gene in enumerate(genes)}
    members = {name: [row[g] for g in of_set if g in row] for name, of_set in sets.items()}
    scored = {n: np.array(m) for n, m in members.items() if FEWEST_GENES <= len(m) < len(genes)}
    x_VxD = np.asarray(embedding_VxD[seen_V], np.float64)
    random_VxD = _random(x_VxD.shape, seed)
    spread_2 = np.maximum(np.std(expression_Vx2[seen_V], 0, dtype=float), 1e-12)
    level_Vx2 = np.asarray(expression_Vx2[seen_V], np.float64) / spread_2
    x_VxD, random_VxD = _directions(x_VxD), _directions(random_VxD)
    aurocs = np.full((len(scored), 3), np.nan)
    for number, rows in enumerate(tqdm(scored.values(), desc="gene sets", unit="set")):
        outside = np.setdiff1d(np.arange(len(genes)), rows)
        parts = np.array_split(np.random.default_rng((seed, number)).permutation(rows), FOLDS)
        each = []
        for part in parts:
            others, ranked = np.setdiff1d(rows, part), np.concatenate([part, outside])
            level_2 = level_Vx2[others].mean(0)
            closeness = (
                x_VxD[ranked] @ x_VxD[others].mean(0),
                -np.linalg.norm(level_Vx2[ranked] - level_2, axis=1),
                random_VxD[ranked] @ random_VxD[others].mean(0),
            )
            pairs = len(part) * len(outside)
            above_3 = rankdata(closeness, axis=1)[:, : len(part)].sum(1)  # Mann and Whitney's U
            each.append((above_3 - len(part) * (len(part) + 1) / 2) / pairs)
        aurocs[number] = np.mean(each, 0)
    found, of_all = sum(map(len, members.values())), sum(map(len, sets.values()))
    note = f"{len(scored)} of {len(sets)} sets have {FEWEST_GENES} seen genes; {found} of "
    note += f"{of_all} members are seen"
    bootstrap = Bootstrap(len(scored), seed=seed, units="gene sets")
    columns = {"": aurocs[:, 0], "_expression": aurocs[:, 1], "_random": aurocs[:, 2]}
    columns["_gain"] = aurocs[:, 0] - aurocs[:, 1]
    how = f"{FOLDS} folds of each set's genes, seed {seed}"
    scores = [
        bootstrap.mean(f"gene_set_auroc{x}", v, of=of, note=note, split=how)
        for x, v in columns.items()
    ]
    share = found / of_all if of_all else None
    return [*scores, Score("gene_set_coverage", share, n=of_all, of=of, note=note)]


def _seen(embedding_VxD, genes, expression_Vx2) -> np.ndarray:
    """Genes with an embedding and an expression, bool [V]."""
    if embedding_VxD.ndim != 2 or expression_Vx2.shape != (len(embedding_VxD), 2):
        raise ValueError(
            f"embedding of shape {embedding_VxD.shape}, expression of {expression_Vx2.shape}: "
            "pass genes x dimensions and two columns of the same genes"
        )
    if len(genes) != len(embedding_VxD) or len(set(genes)) != len(genes):
        raise ValueError(
            f"{len(genes)} names ({len(set(genes))} different) of {len(embedding_VxD)} genes: "
            "give each gene one name of its own"
        )
    finite_VxD = np.isfinite(embedding_VxD)
    if partly := int((finite_VxD.any(1) & ~finite_VxD.all(1)).sum()):
        raise ValueError(f"{partly} genes' embeddings are partly NaN or infinite: recompute them")
    return finite_VxD.all(1) & np.isfinite(expression_Vx2).all(1)


def _probe(x_MxD, label_M, train, test, seed: int) -> np.ndarray:
    """Log-odds of held-out genes; of equally good penalties the strongest is taken."""
    logistic = LogisticRegression(class_weight="balanced", max_iter=5_000)
    search = GridSearchCV(
        Pipeline([("scale", StandardScaler()), ("logistic", logistic)]),
        {"logistic__C": PENALTIES},
        scoring="roc_auc",
        cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed),
    )
    x_MxD = np.asarray(x_MxD, np.float64)
    return search.fit(x_MxD[train], label_M[train]).decision_function(x_MxD[test])


def _auroc(weights_SxM, label_M, folds) -> np.ndarray:
    """Share of pairs of one fold in order, ties half, by weights [S]; NaN without a pair."""
    won_S, pairs_S = np.zeros(len(weights_SxM)), np.zeros(len(weights_SxM))
    for test, score in folds:
        positive, negative = np.flatnonzero(label_M[test]), np.flatnonzero(~label_M[test])
        ahead = score[positive][:, None] - score[negative]
        wins_PxQ = (ahead > 0) + 0.5 * (ahead == 0)
        p_SxP, q_SxQ = weights_SxM[:, test[positive]], weights_SxM[:, test[negative]]
        pairs_S += p_SxP.sum(1) * q_SxQ.sum(1)
        won_S += ((p_SxP @ wins_PxQ) * q_SxQ).sum(1)
    return np.divide(won_S, pairs_S, out=np.full(len(won_S), np.nan), where=pairs_S > 0)


def _random(shape: tuple[int, int], seed: int) -> np.ndarray:
    """A random embedding, from a stream of its own: one drawn with the same seed differs."""
    (stream,) = np.random.SeedSequence(seed).spawn(1)
    return np.random.default_rng(stream).normal(size=shape)


def _directions(x_VxD: np.ndarray) -> np.ndarray:
    """Centred and of length 1; a gene at the very centre stays 0."""
    x_VxD = x_VxD - x_VxD.mean(0)
    length_V = np.linalg.norm(x_VxD, axis=1, keepdims=True)
    return np.divide(x_VxD, length_V, out=np.zeros_like(x_VxD), where=length_V > 0)
