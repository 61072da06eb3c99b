"""Predicted genes at masked slots -> accuracy, repeats and uniqueness of each cell."""

import jax
import jax.numpy as jnp


def cell_metrics(
    top_BxM: jax.Array, labels_BxM: jax.Array, counted_BxM: jax.Array, known_BxV: jax.Array
) -> dict[str, jax.Array]:
    """How well and how varied each cell's genes are predicted (Geneformer-CAB's metrics).

    Args:
      top_BxM: int, predicted gene of each slot.
      labels_BxM: int, true gene; -1 = empty slot.
      counted_BxM: bool, slots to count, none of them empty.
      known_BxV: bool, gene stands at a position that was not selected.

    Returns:
      float32 [B] each; all 0 for a cell without a counted slot (`slots` tells):
      slots: number of counted slots.
      accuracy: share of predictions that are the true gene.
      repeat_unmasked: share whose gene stands at a known position.
      repeat_masked: sum over genes of (times predicted - 1) / predictions.
      uniqueness: genes predicted exactly once / predictions.
    """
    counted_BxM = counted_BxM & (labels_BxM >= 0)
    slots_B = counted_BxM.sum(1)
    pairs_BxMxM = counted_BxM[:, :, None] & counted_BxM[:, None, :]
    same_BxMxM = (top_BxM[:, :, None] == top_BxM[:, None, :]) & pairs_BxMxM
    times_BxM = same_BxMxM.sum(2)
    earlier_BxM = jnp.tril(same_BxMxM, -1).any(2)

    def share(of_slots_BxM):
        return (of_slots_BxM & counted_BxM).sum(1) / jnp.maximum(slots_B, 1)

    return {
        "slots": slots_B.astype(jnp.float32),
        "accuracy": share(top_BxM == labels_BxM),
        "repeat_unmasked": share(jnp.take_along_axis(known_BxV, top_BxM, axis=1)),
        "repeat_masked": share(earlier_BxM),
        "uniqueness": share(times_BxM == 1),
    }
