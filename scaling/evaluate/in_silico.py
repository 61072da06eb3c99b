"""Cells with a gene taken out, or put first -> how far their embeddings shift."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from sklearn.metrics.pairwise import paired_cosine_distances

from scaling.corpus.tokens import PAD
from scaling.evaluate import embed
from scaling.pretrain.model import ModelSettings

Kind = Literal["delete", "overexpress"]
KINDS = ("delete", "overexpress")
AT_A_TIME = 4_096  # perturbed cells


def shifts(
    params: dict,
    model: ModelSettings,
    layer: int,
    tokens_NxL: np.ndarray,
    special: int,
    genes: Sequence[int],
    kind: Kind = "delete",
    pool: str = "genes",
) -> np.ndarray:
    """Shift of each cell's embedding by each of some genes (Theodoris et al. 2023), all devices.

    A gene is deleted by taking its token out, those behind it moving up, and over-expressed by
    putting it at the best rank; a full cell then loses its last gene. The shift is 1 - cosine
    similarity of the embeddings before and after, 0 where nothing moves.

    Args:
      params, model, layer, special, pool: see `embed.embed_tokens`.
      tokens_NxL: int32 rank tokens, padded.
      genes: G tokens.
      kind: "delete", or "overexpress", which puts in a gene that the cell lacks as well.

    Returns:
      float32 [N, G]; NaN for a gene to delete that the cell has not, or that is its only one.

    Raises:
      ValueError: another kind, or a token of no gene.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no perturbation; give one of {KINDS}")
    if wrong := [gene for gene in genes if not special <= gene < len(params["bias"])]:
        raise ValueError(f"tokens {wrong} are of no gene; those of genes begin at {special}")
    change = _deleted if kind == "delete" else _first
    before_NxD = embed.embed_tokens(params, model, layer, [tokens_NxL], special, pool)
    found_NxG = np.full((len(tokens_NxL), len(genes)), np.nan, np.float32)
    wanted = [(n, g) for n in range(len(tokens_NxL)) for g in range(len(genes))]
    for start in range(0, len(wanted), AT_A_TIME):
        changed = {
            (n, g): cell
            for n, g in wanted[start : start + AT_A_TIME]
            if (cell := change(tokens_NxL[n], genes[g], special)) is not None
        }
        if not changed:
            continue
        blocks = [np.stack(list(changed.values()))]
        after_PxD = embed.embed_tokens(params, model, layer, blocks, special, pool)
        rows_P, genes_P = np.array(list(changed)).T
        of_both = before_NxD[rows_P].astype(np.float64), after_PxD.astype(np.float64)
        found_NxG[rows_P, genes_P] = paired_cosine_distances(*of_both)
    return found_NxG


def _deleted(tokens_L: np.ndarray, gene: int, special: int) -> np.ndarray | None:
    places = np.flatnonzero(tokens_L == gene)
    if not len(places) or (tokens_L >= special).sum() == len(places):
        return None
    left = np.delete(tokens_L, places)
    return np.concatenate([left, np.full(len(places), PAD, left.dtype)])


def _first(tokens_L: np.ndarray, gene: int, special: int) -> np.ndarray | None:
    around = tokens_L[(tokens_L < special) & (tokens_L != PAD)]  # <cls> and <eos>, or none
    others = tokens_L[(tokens_L >= special) & (tokens_L != gene)]
    genes = np.concatenate([[gene], others])[: len(tokens_L) - len(around)]
    cell = np.concatenate([around[:1], genes, around[1:]])
    return np.pad(cell, (0, len(tokens_L) - len(cell))).astype(tokens_L.dtype)
