"""A Perturb-seq screen and gene embeddings -> how well unseen perturbations are foreseen."""

import dataclasses

import numpy as np

from scaling.corpus.vocabulary import read_gene_names
from scaling.evaluate import baselines, gene_perturbation
from scaling.evaluate.changes import nothing_scored
from scaling.evaluate.gene_perturbation import PREDICTORS
from scaling.evaluate.held_out import HeldOut
from scaling.evaluate.intervals import NotScoredError, Score

ASKED = {
    "perturbations": gene_perturbation.unseen_perturbations,
    "combinations": gene_perturbation.unseen_combinations,
}


def is_screen(data: HeldOut) -> bool:
    """Whether `evaluate.screens` names the data set, and its cells have counts."""
    return data.name in data.settings.screens and data.counts is not None


def scores_of_genes(data: HeldOut, embeddings: dict[str, np.ndarray]) -> list[Score]:
    """How well gene embeddings foresee perturbations, those of one gene and of several.

    Args:
      data: a screen.
      embeddings: by kind, float32 [genes of the corpus, D], NaN where a gene has none.

    Returns:
      The scores of `gene_perturbation`, named perturbations_* and combinations_*; `of` is the
      kind, and of a unit's score "unit, kind".
    """
    return [
        dataclasses.replace(score, of=", ".join(filter(None, (score.of, kind))))
        for kind, embedding_VxD in embeddings.items()
        for score in _scores(data, embedding_VxD, ("embedding",))["embedding"]
    ]


def scores_of_baselines(data: HeldOut) -> dict[str, list[Score]]:
    """The same scores of the predictors that need no embedding, by name."""
    others = tuple(name for name in PREDICTORS if name != "embedding")
    return _scores(data, np.zeros((data.counts.shape[1], 1)), others)


def _scores(data: HeldOut, embedding_VxD, predictors) -> dict[str, list[Score]]:
    genes = np.array(data.corpus.vocabulary.genes)
    known = np.isfinite(embedding_VxD).all(1)
    screen = baselines.log_normalise(data.counts, data.totals), genes, _perturbations(data)
    told = {"donors": data.donors, "seed": data.settings.seed, "predictors": predictors}
    found = {name: [] for name in predictors}
    for what, function in ASKED.items():
        control = data.settings.screens[data.name]
        try:
            scored = function(embedding_VxD[known], genes[known], *screen, control, **told)
        except NotScoredError as why:
            scored = nothing_scored(predictors, "", str(why))
        for name in found.keys() & scored.keys():
            found[name] += [dataclasses.replace(s, name=f"{what}_{s.name}") for s in scored[name]]
    return found


def _perturbations(data: HeldOut) -> np.ndarray:
    """The batches, with symbols turned into the ids that the vocabulary has."""
    ids = read_gene_names(data.settings.gene_names, data.corpus.vocabulary.genes)
    control = data.settings.screens[data.name]
    return np.array([
        "+".join(part if part == control else ids.get(part, part) for part in name.split("+"))
        for name in data.batches
    ])  # fmt: skip
