"""Masked cells and the head's states -> the loss that is trained on, and its parts as sums."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from kernels.cab import CabLoss, cab_loss, masked_lm_loss
from kernels.cab.api import IMPLEMENTATIONS
from scaling.corpus.tokens import PAD
from scaling.pretrain.masking import MaskedCells
from scaling.pretrain.sharding import CELLS

NAMES = ("mlm", "cab", "cab_no_similarity")
VARIANTS = ("recalibrated", "plain")


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """What is trained on; the fields are those of `config.objective`.

    Attributes:
      name: "mlm", "cab", or "cab_no_similarity" (blocking alone).
      variant: the cross-entropy of cab reads Q ("recalibrated") or P ("plain").
      similarity: "cosine", or "dot" as the paper's graphical abstract draws it.
      weight: lambda of the similarity term.
      denominator: of the similarity's mean: "masked_pairs", or "published", which depends on the
        padded length: sum over masked i of (L-1-i) for recalibrated, B L (L-1) / 2 for plain,
        whose equal padding rows then count as similar.
      implementation: of the loss kernels, a name in `kernels.cab.api`, or "default": the
        platform's.
    """

    name: str
    variant: str
    similarity: str
    weight: float
    denominator: str
    implementation: str = "default"

    def __post_init__(self):
        choices = {
            "name": NAMES,
            "variant": VARIANTS,
            "similarity": ("cosine", "dot"),
            "denominator": ("masked_pairs", "published"),
            "implementation": ("default", *IMPLEMENTATIONS),
        }
        for field, known in choices.items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"objective.{field} is {getattr(self, field)!r}; one of {', '.join(known)}"
                )
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"objective.weight is {self.weight}; for no similarity term choose "
                "objective.name=cab_no_similarity"
            )


class Loss(NamedTuple):
    """Parts of a loss as sums and what divides them, so that batches can be added up.

    Attributes:
      cross_entropy: nats, over positions.
      positions: masked positions.
      similarity: over pairs; 0 where the objective has none.
      pairs: what divides the similarity.
    """

    cross_entropy: jax.Array
    positions: jax.Array
    similarity: jax.Array
    pairs: jax.Array

    def value(self, settings: ObjectiveSettings) -> jax.Array:
        """cross_entropy / positions + weight * similarity / pairs."""
        mean = self.cross_entropy / jnp.maximum(self.positions, 1)
        if settings.name != "cab":
            return mean
        return mean + settings.weight * self.similarity / jnp.maximum(self.pairs, 1)


def objective(
    hidden_BxMxD: jax.Array,
    embedding_VxD: jax.Array,
    bias_V: jax.Array,
    cells: MaskedCells,
    known_BxV: jax.Array,
    settings: ObjectiveSettings,
) -> tuple[Loss, CabLoss]:
    """Loss of a batch and the genes it predicts; definitions in `kernels.cab`."""
    arrays = hidden_BxMxD, embedding_VxD, bias_V, cells.labels_BxM
    named = None if settings.implementation == "default" else settings.implementation
    positions, pairs = denominators(cells, settings)
    if settings.name == "mlm":
        plain = functools.partial(masked_lm_loss, implementation=named)
        out = _over_mesh(plain, *arrays)
        return Loss(out.cross_entropy, positions, out.similarity, pairs), out
    blocking = functools.partial(
        cab_loss,
        variant=settings.variant,
        similarity=settings.similarity if settings.name == "cab" else "none",
        implementation=named,
    )
    out = _over_mesh(blocking, *arrays, known_BxV)
    similarity = out.similarity
    if (settings.name, settings.variant, settings.denominator) == ("cab", "plain", "published"):
        padding_B = (cells.inputs_BxL == PAD).sum(1).astype(similarity.dtype)
        similarity += (padding_B * (padding_B - 1) / 2).sum()
    return Loss(out.cross_entropy, positions, similarity, pairs), out


def denominators(cells: MaskedCells, settings: ObjectiveSettings) -> tuple[jax.Array, jax.Array]:
    """What divides cross-entropy and similarity: positions and pairs, float32, of all the cells."""
    slots_B = (cells.labels_BxM >= 0).sum(1).astype(jnp.float32)
    pairs = (slots_B * (slots_B - 1) / 2).sum()
    if settings.denominator == "published" and settings.name == "cab":
        batch, length = cells.inputs_BxL.shape
        if settings.variant == "recalibrated":
            real_BxM = cells.labels_BxM >= 0
            pairs = jnp.where(real_BxM, length - 1.0 - cells.slots_BxM, 0.0).sum()
        else:
            pairs = jnp.float32(batch * length * (length - 1) / 2)
    return slots_B.sum(), pairs


def _over_mesh(
    loss: Callable[..., CabLoss], hidden, embedding, bias, labels, known=None
) -> CabLoss:
    """The loss with each device on its own cells and its part of the vocabulary."""
    arrays = (hidden, embedding, bias, labels, *(() if known is None else (known,)))
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return loss(*arrays)
    of_cells = tuple(name for name in CELLS if name in sizes)
    parts = sizes.get("tensor", 1)
    whole = -(-len(embedding) // parts) * parts - len(embedding)
    if whole:  # genes that no cell can have, so that the parts are equal
        embedding = jnp.pad(embedding, ((0, whole), (0, 0)))
        bias = jnp.pad(bias, (0, whole), constant_values=-jnp.inf)
        arrays = (hidden, embedding, bias, labels)
        arrays += () if known is None else (jnp.pad(known, ((0, 0), (0, whole))),)
    genes = "tensor" if parts > 1 else None

    def local(*arrays) -> CabLoss:
        *sums, top_p_BxM, top_q_BxM = loss(*arrays, vocabulary_axis=genes)
        return CabLoss(*jax.lax.psum(sums, of_cells), top_p_BxM, top_q_BxM)

    cells, every = P(of_cells), P()
    in_specs = cells, P(genes), P(genes), cells, P(of_cells, genes)
    return jax.shard_map(
        local,
        in_specs=in_specs[: len(arrays)],
        out_specs=CabLoss(every, every, every, every, cells, cells),
    )(*arrays)
