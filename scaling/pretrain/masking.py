"""Rank tokens and seeds -> what the encoder sees, the masked slots and their true genes."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scaling.corpus.tokens import PAD, SPECIAL
from scaling.pretrain import selection

STRATEGIES = ("uniform", "band", "programs", "mam")
HELD_OUT_SEED = 0  # of the fixed masks that every run is measured on
DRAWS = 4  # part of a run's hash: raised when draws or updates change, so that no run mixes two


@dataclasses.dataclass(frozen=True)
class MaskingSettings:
    """Which positions are masked, and with what; the fields are those of `config.masking`.

    What is selected is treated in BERT's way whatever the strategy.

    Attributes:
      rate: share of the non-padding positions that are selected.
      mask_share: share of the selected positions that become `<mask>`.
      random_share: share of the selected positions that become a random gene; the rest stays.
      draw_special: let the random gene be a token that is no gene too, and select `<cls>` and
        `<eos>`, as the original code does.
      strategy: "uniform", each position drawn by itself (BERT); "band", likewise of the ranks in
        the band alone, as many in all; "programs", whole gene programs, until they hold the share;
        "mam", where the model's latents attend, see `mam.mask`.
      band: of "band": the first and last share of a cell's genes by rank, (0.0, 0.5) the better
        half.
      programs: of "programs": path of a GMT file.
      gene_names: CSV with the columns gene_name and ensembl_id, for programs of symbols; "" for
        those whose genes are written as the vocabulary's.
    """

    rate: float
    mask_share: float
    random_share: float
    draw_special: bool
    strategy: str = "uniform"
    band: tuple[float, float] = (0.0, 1.0)
    programs: str = ""
    gene_names: str = ""

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise ValueError(f"masking.strategy is {self.strategy!r}; give one of {STRATEGIES}")
        if not (isinstance(self.rate, float) and 0 < self.rate < 1):
            raise ValueError(f"masking.rate is {self.rate!r}; give a share between 0 and 1")
        shares = self.mask_share, self.random_share
        if not (min(shares) >= 0 and sum(shares) <= 1):  # so written that a NaN is refused
            raise ValueError(
                f"masking.mask_share {self.mask_share} and random_share {self.random_share} must "
                "be shares that add up to 1 at most"
            )
        band = self.band if isinstance(self.band, tuple) else ()
        known = list(map(type, band)) in ([float] * 2, [float, int], [int, float], [int] * 2)
        if not (known and 0 <= band[0] and band[1] <= 1 and band[1] - band[0] >= self.rate):
            raise ValueError(
                f"masking.band is {self.band}; give shares of the ranks from 0 to 1, at least "
                f"masking.rate {self.rate} apart"
            )
        if self.strategy == "programs" and not self.programs:
            raise ValueError("masking.strategy is 'programs'; name a GMT file in masking.programs")

    def of_scores(self) -> "MaskingSettings":
        """The masks on which models are scored: those of BERT, whatever they were trained with."""
        return dataclasses.replace(
            self, strategy="uniform", band=(0.0, 1.0), programs="", gene_names=""
        )


class Later(NamedTuple):
    """What it takes to mask cells inside the training step.

    Attributes:
      draw_B: uint32, of each cell and epoch, from which its masks are drawn.
      first_B: int32, least token that may take a masked gene's place.
      free_BxL: bool, the positions that may be masked.
    """

    draw_B: np.ndarray | jax.Array
    first_B: np.ndarray | jax.Array
    free_BxL: np.ndarray | jax.Array


class MaskedCells(NamedTuple):
    """Cells after masking. Slots stand in the order of the cell, by rank, the empty ones last.

    Attributes:
      inputs_BxL: int32, what the encoder reads.
      slots_BxM: int32, position of each masked slot; 0 where the slot is empty.
      labels_BxM: int32, true gene; -1 where the slot is empty.
      hidden_BxM: bool, the input there is `<mask>` (not a random or the unchanged gene).
      surplus_B: int32, selected positions that did not fit M and stay unmasked.
      later: where the training step does the masking; nothing is masked then.
      values_BxL: float32, see `encodings.Cells`: also those of masked genes, as their ranks are
        seen too; None in the encoding "ranks".
      fits: of each supervised column bool [B, C], the classes that a cell may be of; None without
        supervision.
    """

    inputs_BxL: np.ndarray | jax.Array
    slots_BxM: np.ndarray | jax.Array
    labels_BxM: np.ndarray | jax.Array
    hidden_BxM: np.ndarray | jax.Array
    surplus_B: np.ndarray | jax.Array
    later: Later | None = None
    values_BxL: np.ndarray | jax.Array | None = None
    fits: dict[str, np.ndarray | jax.Array] | None = None


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
    programs: selection.Programs = selection.NONE,
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
      programs: `selection.read_programs` of the strategy "programs".

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
    whole = settings.strategy == "programs"
    band = settings.band if settings.strategy == "band" else (0.0, 1.0)
    shares = settings.rate / (band[1] - band[0]), settings.mask_share
    shares += (settings.mask_share + settings.random_share,)
    bounds = np.array([round(share * 2**32) for share in shares], np.uint64)
    key_B = np.stack([np.asarray(epoch_B, np.uint64), np.asarray(cell_B, np.uint64)])
    first = 0 if settings.draw_special else special
    if settings.strategy == "mam":
        draws = [selection.key_of(np.uint64(seed), *of_cell) for of_cell in key_B.T]
        draw_B = np.array(draws, np.uint64).astype(np.uint32)
        free_BxL = tokens_BxL >= max(first, PAD + 1)
        return cells._replace(later=Later(draw_B, np.full(size, first, np.int32), free_BxL))
    how = bounds, band, settings.rate, whole, programs
    selection.mask(tokens_BxL, np.uint64(seed), *key_B, first, vocabulary, *how, *cells[:5])
    return cells


def known_genes(cells: MaskedCells, vocabulary: int) -> jax.Array:
    """bool [B, V]: the token stands at a position that was not selected (padding too)."""

    def of_cell(inputs_L, slots_M, labels_M):
        filled_M = jnp.where(labels_M >= 0, slots_M, len(inputs_L))
        # Masked positions get a token beyond the last, which is dropped.
        seen_L = inputs_L.at[filled_M].set(vocabulary, mode="drop")
        return jnp.zeros(vocabulary, bool).at[seen_L].set(True, mode="drop")

    return jax.vmap(of_cell)(cells.inputs_BxL, cells.slots_BxM, cells.labels_BxM)
