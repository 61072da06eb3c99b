"""Rank tokens and seeds -> what the encoder sees, the masked slots and their true genes."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numba
import numpy as np

from scaling.corpus.tokens import MASK, PAD, SPECIAL

HELD_OUT_SEED = 0  # of the fixed masks that every run is measured on
DRAWS = 3  # part of a run's hash: raised when draws or updates change, so that no run mixes two
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment


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
        shares = self.mask_share, self.random_share
        if not (min(shares) >= 0 and sum(shares) <= 1):  # so written that a NaN is refused
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
      surplus_B: int32, selected positions that did not fit M and stay unmasked.
    """

    inputs_BxL: np.ndarray | jax.Array
    slots_BxM: np.ndarray | jax.Array
    labels_BxM: np.ndarray | jax.Array
    hidden_BxM: np.ndarray | jax.Array
    surplus_B: np.ndarray | jax.Array


def capacity(length: int, rate: float) -> int:
    """M: the slots that all but about one full-length cell in a million need (384 of 2,048)."""
    mean, sd = length * rate, math.sqrt(length * rate * (1 - rate))
    return min(length, math.ceil((mean + 4.75 * sd) / 8) * 8)


def mask_cells(
    tokens_BxL: np.ndarray,
    seed: int,
    epoch_B: np.ndarray,
    cell_B: np.ndarray,
    vocabulary: int,
    settings: MaskingSettings,
    special: int = len(SPECIAL),
) -> MaskedCells:
    """Masks cells: BERT's 15 % with 80/10/10 at its default settings (Devlin et al. 2019).

    What is drawn for a position is a function of (seed, epoch, cell, position) alone, the same on
    every machine and whatever the batch.

    Args:
      tokens_BxL: int32 rank tokens, padded.
      seed: masking seed, not negative.
      epoch_B: int, pass over the training cells; 0 for held-out cells, whose draw is fixed.
      cell_B: uint32, hash of the cell's id.
      vocabulary: V.
      settings: shares.
      special: tokens that are no genes; the first gene's token follows them.

    Returns:
      NumPy arrays.
    """
    size, slots = len(tokens_BxL), capacity(tokens_BxL.shape[1], settings.rate)
    cells = MaskedCells(
        tokens_BxL.copy(),
        np.zeros((size, slots), np.int32),
        np.full((size, slots), -1, np.int32),
        np.zeros((size, slots), np.bool_),
        np.zeros(size, np.int32),
    )
    shares = settings.rate, settings.mask_share, settings.mask_share + settings.random_share
    bounds = np.array([round(share * 2**32) for share in shares], np.uint64)
    key_B = np.stack([np.asarray(epoch_B, np.uint64), np.asarray(cell_B, np.uint64)])
    first = 0 if settings.draw_special else special
    _mask(tokens_BxL, np.uint64(seed), *key_B, first, vocabulary, bounds, *cells)
    return cells


@numba.njit(cache=True, nogil=True)
def _mask(
    tokens, seed, epoch, cell, first, vocabulary, bounds, inputs, slots, labels, hidden, surplus
):
    """Positions are selected by the upper half of one word each, treated by those of another."""
    count, length = tokens.shape
    half, lower = np.uint64(32), np.uint64(0xFFFFFFFF)
    lowest, genes = max(first, PAD + 1), np.uint64(vocabulary - first)
    word, position = np.empty(length, np.uint64), np.empty(length, np.int64)
    for b in range(count):
        key = _mixed(_mixed(_mixed(seed) ^ epoch[b]) ^ cell[b])
        chosen = 0
        for p in range(length):
            drawn = _mixed(key + np.uint64(p) * GOLDEN)
            word[chosen], position[chosen] = drawn, p
            chosen += ((drawn >> half) < bounds[0]) & (tokens[b, p] >= lowest)
        last = np.uint64(0xFFFFFFFFFFFFFFFF)
        if chosen > slots.shape[1]:
            # The smallest words are a random choice; no two of a cell are the same.
            last = np.sort(word[:chosen])[slots.shape[1] - 1]
            surplus[b] = chosen - slots.shape[1]
        slot = 0
        for k in range(chosen):
            if word[k] > last:
                continue
            p, treatment = position[k], _mixed(word[k])
            slots[b, slot], labels[b, slot] = p, tokens[b, p]
            if (treatment >> half) < bounds[1]:
                inputs[b, p], hidden[b, slot] = MASK, True
            elif (treatment >> half) < bounds[2]:
                inputs[b, p] = first + np.int64(((treatment & lower) * genes) >> half)
            slot += 1


@numba.njit(cache=True, nogil=True)
def _mixed(state):
    """The output of SplitMix64 after a state (Steele et al. 2014), uint64."""
    word = state + GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def known_genes(cells: MaskedCells, vocabulary: int) -> jax.Array:
    """bool [B, V]: the token stands at a position that was not selected (padding too)."""

    def of_cell(inputs_L, slots_M, labels_M):
        filled_M = jnp.where(labels_M >= 0, slots_M, len(inputs_L))
        # Masked positions get a token beyond the last, which is dropped.
        seen_L = inputs_L.at[filled_M].set(vocabulary, mode="drop")
        return jnp.zeros(vocabulary, bool).at[seen_L].set(True, mode="drop")

    return jax.vmap(of_cell)(cells.inputs_BxL, cells.slots_BxM, cells.labels_BxM)
