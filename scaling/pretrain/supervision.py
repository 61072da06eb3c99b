"""Annotations of cells -> classes predicted in pretraining, beside the masked genes (TEDDY)."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from scaling.corpus import cell_ontology
from scaling.corpus.shards import Corpus
from scaling.corpus.tokens import PAD

COLUMNS = ("cell_type", "tissue", "disease", "sex")


@dataclasses.dataclass(frozen=True)
class SupervisionSettings:
    """What cells are classified by; the fields are those of `config.supervision`.

    Attributes:
      columns: annotations, of COLUMNS, or pairs of one and its weight.
      weight: of a column's cross-entropy in the loss, where it has none of its own.
      ontology: OBO file of the Cell Ontology, for cell types that are kinds of others; or "".
      ontology_labels: CSV with the columns label and term; "" is the table that comes along.
    """

    columns: tuple[str | tuple[str, float], ...] = ()
    weight: float = 0.1
    ontology: str = ""
    ontology_labels: str = ""

    def __post_init__(self):
        weights = self.weights
        if len(weights) != len(self.columns) or set(weights) - set(COLUMNS):
            raise ValueError(
                f"supervision.columns is {self.columns}; give distinct ones of {COLUMNS}, or pairs "
                "of one and its weight; which column of .obs each is, data.cell_type and its like "
                "say"
            )
        for column, weight in weights.items():
            if not (isinstance(weight, int | float) and 0 < weight < float("inf")):
                raise ValueError(
                    f"supervision.columns gives {column} the weight {weight!r}; give a number > 0"
                )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each column."""
        pairs = (c if isinstance(c, tuple | list) else (c, self.weight) for c in self.columns)
        return {column: weight for column, weight in pairs}


class Classes(NamedTuple):
    """Classes of an annotation.

    Attributes:
      names: of C classes.
      fits: bool [C + 1, C]: a cell with the label of the row may be of the class of the column; the
        last row, of cells without a label, has none.
    """

    names: tuple[str, ...]
    fits: np.ndarray

    def numbers(self, labels: pd.Series) -> np.ndarray:
        """Number of each cell's label, -1 where it is no class: int [cells], rows of `fits`."""
        return pd.Categorical(labels, self.names).codes


def classes(settings: SupervisionSettings, corpus: Corpus) -> dict[str, Classes]:
    """Classes of each column: the labels of the training pool, so that all sizes have the same.

    With the ontology, the label of a term fits the classes of that term and of all kinds of it
    (is_a); without, or where a label has no term, it fits itself alone.

    Raises:
      ValueError: the pool has fewer than two labels in a column, or the ontology cannot be read.
    """
    pool, found = corpus.obs[corpus.obs["split"] == "pool"], {}
    for column in settings.weights:
        names = tuple(sorted(set(pool[column].astype(str)) - {""}))
        if len(names) < 2:
            raise ValueError(
                f"supervision.columns has {column!r}, and its labels of the training cells in "
                f"{corpus.folder} are {list(names)}, of which there must be two; name their column "
                f"of .obs by data.{column}, or leave it out"
            )
        fits = np.eye(len(names), dtype=bool)
        if column == "cell_type" and settings.ontology:
            fits |= _kinds(names, settings)
        nothing = np.zeros((1, len(names)), bool)
        found[column] = Classes(names, np.append(fits, nothing, axis=0))
    return found


def _kinds(names: tuple[str, ...], settings: SupervisionSettings) -> np.ndarray:
    """bool [C, C]: the class of the column is a kind of that of the row."""
    ontology = cell_ontology.read_ontology(settings.ontology)
    table = cell_ontology.read_labels(settings.ontology_labels or cell_ontology.LABELS)
    terms, without = cell_ontology.match(names, ontology, table)
    if not terms:
        raise ValueError(
            f"supervision.ontology {settings.ontology} has a term for none of the cell types "
            f"{', '.join(names[:5])}; give their terms in supervision.ontology_labels, a CSV with "
            "the columns label and term, or leave it out"
        )
    told = "; ".join(f"{name}: {why}" for name, why in without.items())
    told = f"; classes of their own: {told}" if told else ""
    print(f"{len(terms)} of {len(names)} cell types have a term{told}", file=sys.stderr)
    above = [ontology.above(terms[name]) if name in terms else {} for name in names]
    return np.array([[terms.get(name) in of_kind for of_kind in above] for name in names])


def initial_heads(key: jax.Array, sizes: Mapping[str, int], width: int) -> dict:
    """Weights of a linear head for each column of so many classes."""
    keys = dict(zip(sizes, jax.random.split(key, max(len(sizes), 1)), strict=False))
    return {
        column: {
            "kernel": 0.02 * jax.random.normal(keys[column], (width, size)),
            "bias": jnp.zeros(size),
        }
        for column, size in sizes.items()
    }


def sums(
    heads: dict, states_BxLxD: jax.Array, tokens_BxL: jax.Array, fits: dict[str, jax.Array]
) -> dict[str, dict[str, jax.Array]]:
    """Cross-entropy of each column, nats, and right classes: sums over cells with a label.

    -log of the sum of the softmax over the classes that a cell may be of, read from the mean of a
    layer's states over all positions but padding. A cell that may be of none adds nothing.

    Args:
      heads: of `initial_heads`.
      states_BxLxD: states that embeddings are read from.
      tokens_BxL: int32.
      fits: bool [B, C] of each column, rows of `Classes.fits`.
    """
    real_BxLx1 = (tokens_BxL != PAD)[..., None]
    total_BxD = jnp.where(real_BxLx1, states_BxLxD, 0).sum(1, dtype=jnp.float32)
    pooled_BxD, found = total_BxD / jnp.maximum(real_BxLx1.sum(1), 1), {}
    for column, head in heads.items():
        log_p_BxC = jax.nn.log_softmax(pooled_BxD @ head["kernel"] + head["bias"])
        labelled_B = fits[column].any(1)
        # All classes of an unlabelled cell, so that no gradient is infinite.
        counted_BxC = fits[column] | ~labelled_B[:, None]
        nats_B = -jax.nn.logsumexp(log_p_BxC, 1, where=counted_BxC)
        top_B = log_p_BxC.argmax(1, keepdims=True)
        right_B = jnp.take_along_axis(fits[column], top_B, 1)[:, 0]
        found[column] = {
            "cross_entropy": jnp.where(labelled_B, nats_B, 0).sum(), "right": right_B.sum()
        }
    return found
