"""Rank tokens and a draw's key -> what the encoder sees, the masked slots and their true genes."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scaling.corpus.tokens import MASK, PAD, SPECIAL


@dataclasses.dataclass(frozen=True)
class MaskingSettings:
    """BERT's masking; the fields are those of `config.masking`.

    Attributes:
      rate: share of the non-padding positions that are selected, each drawn by itself.
      mask_share: share of the selected positions that become `<mask>`.
      random_share: share of the selected positions that become a random gene; the rest stays.
      draw_special: let the random gene be a token that is no gene too, and select `<cls>` and
        `<eos>`, as the original code does.
    """

    rate: float
    mask_share: float
    random_share: float
    draw_special: bool

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise ValueError(f"masking.rate is {self.rate}; give a share between 0 and 1")
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"masking.mask_share {self.mask_share} and random_share {self.random_share} must "
                "be shares that add up to 1 at most"
            )


class MaskedCells(NamedTuple):
    """Cells after masking. Slots stand in rank order, the empty ones last.

    Attributes:
      inputs_BxL: int32, what the encoder reads.
      slots_BxM: int32, position of each masked slot; 0 where the slot is empty.
      labels_BxM: int32, true gene; -1 where the slot is empty.
      hidden_BxM: bool, the input there is `<mask>` (not a random or the unchanged gene).
      known_BxV: bool, token stands at a position that was not selected (padding too).
      surplus_B: int32, selected positions that did not fit M and stay unmasked.
    """

    inputs_BxL: jax.Array
    slots_BxM: jax.Array
    labels_BxM: jax.Array
    hidden_BxM: jax.Array
    known_BxV: jax.Array
    surplus_B: jax.Array


def capacity(length: int, rate: float) -> int:
    """M: the slots that all but about one full-length cell in a million need (384 of 2,048)."""
    mean, sd = length * rate, math.sqrt(length * rate * (1 - rate))
    return min(length, math.ceil((mean + 4.75 * sd) / 8) * 8)


def draw_keys(seed: int, epoch_B: jax.Array, cell_B: jax.Array) -> jax.Array:
    """One key per cell, a function of (seed, epoch, cell) alone.

    Args:
      seed: masking seed.
      epoch_B: int32, pass over the training cells; 0 for held-out cells, whose draw is fixed.
      cell_B: uint32, hash of the cell's id.
    """

    def key(epoch, cell):
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), cell)

    return jax.vmap(key)(epoch_B, cell_B)


def mask_cells(
    tokens_BxL: jax.Array,
    keys_B: jax.Array,
    vocabulary: int,
    settings: MaskingSettings,
    special: int = len(SPECIAL),
) -> MaskedCells:
    """Masks cells: BERT's 15 % with 80/10/10 at its default settings (Devlin et al. 2019).

    Args:
      tokens_BxL: int32 rank tokens, padded.
      keys_B: one random key per cell.
      vocabulary: V.
      settings: shares.
      special: tokens that are no genes; the first gene's token follows them.
    """
    slots = capacity(tokens_BxL.shape[1], settings.rate)
    first = 0 if settings.draw_special else special
    of_cell = functools.partial(_mask_cell, slots, first, vocabulary, settings)
    return jax.vmap(of_cell)(tokens_BxL, keys_B)


def _mask_cell(slots: int, first: int, vocabulary: int, settings: MaskingSettings, tokens_L, key):
    length = len(tokens_L)
    select, treat, draw = jax.random.split(key, 3)
    uniform_L = jax.random.uniform(select, (length,))
    chosen_L = (uniform_L < settings.rate) & (tokens_L != PAD) & (tokens_L >= first)
    # The smallest draws of the selected positions are a random choice among them.
    lowest, position_M = jax.lax.top_k(jnp.where(chosen_L, -uniform_L, -2.0), slots)
    position_M = jnp.sort(jnp.where(lowest > -2.0, position_M, length))
    kept_L = jnp.zeros(length, bool).at[position_M].set(True, mode="drop")

    treatment_L = jax.random.uniform(treat, (length,))
    hidden_L = kept_L & (treatment_L < settings.mask_share)
    random_L = kept_L & ~hidden_L & (treatment_L < settings.mask_share + settings.random_share)
    gene_L = jax.random.randint(draw, (length,), first, vocabulary, jnp.int32)
    inputs_L = jnp.where(hidden_L, MASK, jnp.where(random_L, gene_L, tokens_L))

    real_M = position_M < length
    slot_M = jnp.where(real_M, position_M, 0).astype(jnp.int32)
    return MaskedCells(
        inputs_L,
        slot_M,
        jnp.where(real_M, tokens_L[slot_M], -1),
        real_M & hidden_L[slot_M],
        jnp.zeros(vocabulary, bool).at[tokens_L].max(~kept_L),
        (chosen_L.sum() - kept_L.sum()).astype(jnp.int32),
    )
