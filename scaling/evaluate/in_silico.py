"""Cells with a gene taken out, or put first -> how far their embeddings shift."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from sklearn.metrics.pairwise import paired_cosine_distances

from scaling.corpus.encodings import Cells, stand
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
    cells: Cells,
    special: int,
    genes: Sequence[int],
    kind: Kind = "delete",
    pool: str = "genes",
) -> np.ndarray:
    """Shift of each cell's embedding by each of some genes (Theodoris et al. 2023), all devices.

    A gene is deleted by taking it out, those behind it moving up, and over-expressed by putting it
    at the best rank, with the cell's highest value where the encoding has values; a full cell then
    loses its last gene, or that of the lowest value. The shift is 1 - cosine similarity of the
    embeddings before and after, 0 where nothing moves.

    Args:
      params, model, layer, special, pool: see `embed.embed_cells`.
      cells: N cells of length L in the model's encoding.
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
    tokens_NxL, change = cells.tokens_BxL, _deleted if kind == "delete" else _first
    around = tokens_NxL[:1][(tokens_NxL[:1] < special) & (tokens_NxL[:1] != PAD)]
    before_NxD = embed.embed_cells(params, model, layer, [cells], special, pool)
    found_NxG = np.full((len(tokens_NxL), len(genes)), np.nan, np.float32)
    wanted = [(n, g) for n in range(len(tokens_NxL)) for g in range(len(genes))]
    for start in range(0, len(wanted), AT_A_TIME):
        changed = {
            (n, g): cell
            for n, g in wanted[start : start + AT_A_TIME]
            if (cell := change(cells.at(n), genes[g], special)) is not None
        }
        if not changed:
            continue
        tokens, values = map(list, zip(*changed.values(), strict=True))
        values = None if cells.values_BxL is None else values
        block = stand(model.encoding, tokens, values, tokens_NxL.shape[1], tuple(around))
        after_PxD = embed.embed_cells(params, model, layer, [block], special, pool)
        rows_P, genes_P = np.array(list(changed)).T
        of_both = before_NxD[rows_P].astype(np.float64), after_PxD.astype(np.float64)
        found_NxG[rows_P, genes_P] = paired_cosine_distances(*of_both)
    return found_NxG


def _deleted(cell: Cells, gene: int, special: int) -> tuple | None:
    """Genes and values of a cell without one."""
    tokens_L, values_L = cell
    is_gene_L = tokens_L >= special
    left = np.flatnonzero(is_gene_L & (tokens_L != gene))
    if len(left) in (0, is_gene_L.sum()):
        return None
    return tokens_L[left], None if values_L is None else values_L[left]


def _first(cell: Cells, gene: int, special: int) -> tuple:
    """Genes and values of a cell, one gene before all others."""
    tokens_L, values_L = cell
    others = np.flatnonzero((tokens_L >= special) & (tokens_L != gene))
    if values_L is None:
        return np.concatenate([[gene], tokens_L[others]]), None
    others = others[np.argsort(-values_L[others], kind="stable")]
    values = np.concatenate([[values_L.max()], values_L[others]])
    return np.concatenate([[gene], tokens_L[others]]), values
