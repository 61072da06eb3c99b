"""Training cells -> representations of cells, a trained model's and baselines', fitted once."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from scipy import sparse

from scaling.corpus import pieces
from scaling.corpus.encodings import arrange, by_cell
from scaling.corpus.shards import Corpus
from scaling.evaluate import baselines, embed, parameter_free
from scaling.evaluate.held_out import EvaluateSettings, HeldOut
from scaling.evaluate.label_scores import Predictions
from scaling.pretrain.model import ModelSettings

FITTED = ("hvg", "pca", "parameter_free")
TRANSDUCTIVE = ("harmony", "scvi")


@dataclasses.dataclass(frozen=True)
class Representation:
    """A frozen way from cells to embeddings.

    Attributes:
      embed: held-out cells of a data set -> float32 [N, D].
      of_counts: CSR counts over the corpus's genes, totals -> float32 [N, D]; NaN for a cell that
        has no gene. None where there is none but for the cells fitted on.
      genes: held-out cells -> by kind, float32 [genes of the corpus, D], NaN where they have none;
        None where genes have no embedding.
      classify: embeddings to fit on, their labels, embeddings to test on -> what the classifier
        that was published with the representation says of the latter; None where there is none.
      lacks: held-out cells -> what they lack to be embedded, "" where nothing.
    """

    embed: Callable[[HeldOut], np.ndarray]
    of_counts: Callable[[sparse.csr_matrix, np.ndarray], np.ndarray] | None = None
    genes: Callable[[HeldOut], dict[str, np.ndarray]] | None = None
    classify: Callable[[np.ndarray, np.ndarray, np.ndarray], Predictions] | None = None
    lacks: Callable[[HeldOut], str] = lambda data: ""


def of_model(
    params: dict, model: ModelSettings, settings: EvaluateSettings, corpus: Corpus
) -> Representation:
    """A trained encoder's: the states of `evaluate.layer`, pooled by `evaluate.pool`."""
    vocabulary, layer, pool = corpus.vocabulary, settings.layer, settings.pool
    special = len(vocabulary.special)

    def of_counts(counts_NxG: sparse.csr_matrix, totals_N: np.ndarray) -> np.ndarray:
        wanted = model.encoding != "ranks"
        tokens, lengths_N, beside = pieces.ranked(counts_NxG, totals_N, vocabulary, wanted)
        of_cells = by_cell(tokens, lengths_N), by_cell(beside, lengths_N)
        cells = arrange(model.encoding, *of_cells, model.length, vocabulary.around)
        found = embed.embed_cells(params, model, layer, [cells], special, pool)
        found[lengths_N == 0] = np.nan
        return found

    def genes(data: HeldOut) -> dict[str, np.ndarray]:
        cells = [corpus.inputs(data.rows, model.length, model.encoding)]
        contextual = embed.embed_genes(params, model, layer, cells)[0]
        table = np.asarray(params["embedding"], np.float32)
        return {"in cells": contextual[special:], "input table": table[special:]}

    return Representation(
        lambda data: embed.embed_corpus(params, model, layer, corpus, data.rows, pool),
        of_counts,
        genes,
    )


def fit_baselines(corpus: Corpus, rows: np.ndarray, names: tuple[str, ...]) -> dict:
    """Baselines by name, fitted on the cells that a model of that size was trained on.

    Args:
      corpus: built corpus.
      rows: the training cells.
      names: of FITTED; and of TRANSDUCTIVE, which are fitted to the cells that they embed. Others
        are no representations and left out.

    Returns:
      {name: Representation}; without those of FITTED where the training cells have no counts.
    """
    found = {
        name: Representation(functools.partial(_integrated, name), lacks=_batches)
        for name in names
        if name in TRANSDUCTIVE
    }
    asked = [name for name in names if name in FITTED]
    if not asked or not corpus.has_counts(rows):
        return found
    counts, totals = corpus.counts(rows), corpus.obs["total"].to_numpy()[rows]
    for name in asked:
        if name == "parameter_free":
            fitted = parameter_free.fit(counts, corpus.obs["cell_type"].to_numpy(str)[rows])
            apply = functools.partial(_by_ranks, fitted)
        elif name == "pca":
            fitted = baselines.fit_pca(counts, totals)
            apply = functools.partial(baselines.apply_pca, fitted)
            genes = functools.partial(_loadings, fitted)
        else:
            apply = functools.partial(baselines.apply_hvg, baselines.fit_hvg(counts, totals))
        found[name] = Representation(
            functools.partial(_of_cells, apply), apply, genes if name == "pca" else None,
            parameter_free.classify if name == "parameter_free" else None,
        )  # fmt: skip
    return {name: found[name] for name in names if name in found}


def _by_ranks(fitted, counts_NxG: sparse.csr_matrix, totals_N: np.ndarray) -> np.ndarray:
    return parameter_free.apply(fitted, counts_NxG)


def _loadings(pca: baselines.Pca, data: HeldOut) -> dict[str, np.ndarray]:
    found = np.full((pca.hvg.genes_measured, len(pca.components_DxG)), np.nan, np.float32)
    found[pca.hvg.genes] = pca.components_DxG.T
    return {"loadings": found}


def _of_cells(apply: Callable, data: HeldOut) -> np.ndarray:
    return apply(data.counts, data.totals)


def _batches(data: HeldOut) -> str:
    known = (data.batches != "").all() and len(set(data.batches)) > 1
    return "" if known else "it integrates batches: every cell needs one, and there must be two"


def _integrated(name: str, data: HeldOut) -> np.ndarray:
    if name == "harmony":
        return baselines.fit_harmony(
            data.counts, data.totals, data.batches, seed=data.settings.seed
        )
    return baselines.fit_scvi(data.counts, data.batches, seed=data.settings.seed)
