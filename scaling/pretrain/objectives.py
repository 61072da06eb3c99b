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

NAMES = ("mlm", "cab", "cab_no_similarity")


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
            "variant": ("recalibrated", "plain"),
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
    settings: ObjectiveSettings,
) -> tuple[Loss, CabLoss]:
    """Loss of a batch and the genes it predicts; definitions in `kernels.cab`."""
    arrays = hidden_BxMxD, embedding_VxD, bias_V, cells.labels_BxM
    named = None if settings.implementation == "default" else settings.implementation
    if settings.name == "mlm":
        plain = functools.partial(masked_lm_loss, implementation=named)
        out = _over_data(plain, *arrays)
        return Loss(out.cross_entropy, out.positions, out.similarity, out.pairs), out
    blocking = functools.partial(
        cab_loss,
        variant=settings.variant,
        similarity=settings.similarity if settings.name == "cab" else "none",
        implementation=named,
    )
    out = _over_data(blocking, *arrays, cells.known_BxV)
    similarity, pairs = out.similarity, out.pairs
    if settings.denominator == "published" and settings.name == "cab":
        batch, length = cells.inputs_BxL.shape
        if settings.variant == "recalibrated":
            real_BxM = cells.labels_BxM >= 0
            pairs = jnp.where(real_BxM, length - 1.0 - cells.slots_BxM, 0.0).sum()
        else:
            padding_B = (cells.inputs_BxL == PAD).sum(1).astype(similarity.dtype)
            similarity += (padding_B * (padding_B - 1) / 2).sum()
            pairs = jnp.full_like(pairs, batch * length * (length - 1) / 2)
    return Loss(out.cross_entropy, out.positions, similarity, pairs), out


def _over_data(loss: Callable[..., CabLoss], hidden, embedding, bias, *of_cells) -> CabLoss:
    """The loss with each device on its own cells, where the mesh has an axis for data."""
    if "data" not in jax.sharding.get_abstract_mesh().axis_names:
        return loss(hidden, embedding, bias, *of_cells)

    def local(*arrays) -> CabLoss:
        *sums, top_p_BxM, top_q_BxM = loss(*arrays)
        return CabLoss(*jax.lax.psum(sums, "data"), top_p_BxM, top_q_BxM)

    cells, every = P("data"), P()
    return jax.shard_map(
        local,
        in_specs=(cells, every, every, *(cells for _ in of_cells)),
        out_specs=CabLoss(every, every, every, every, cells, cells),
    )(hidden, embedding, bias, *of_cells)
