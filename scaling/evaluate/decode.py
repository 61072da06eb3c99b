"""Cells with masked genes -> the genes that a model puts there, at once or one after another."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kernels.cab import cab_loss
from scaling.corpus.encodings import Cells
from scaling.corpus.tokens import MASK
from scaling.evaluate import embed
from scaling.pretrain.model import ModelSettings, RankEncoder

Reading = Literal["P", "Q"]
Order = Literal["at_once", "one_by_one"]
ORDERS = ("at_once", "one_by_one")
SLOTS = 8  # masked positions are filled up to a multiple of so many: few programs


def fill(
    params: dict,
    model: ModelSettings,
    cells: Cells,
    special: int,
    *,
    read: Reading = "Q",
    order: Order = "one_by_one",
) -> np.ndarray:
    """Puts a gene at every `<mask>` of cells, on all local devices.

    At once: each position gets the gene of the highest P (the softmax) or of the highest Q (after
    cumulative assignment blocking, see `kernels.cab.cab_loss`): no gene that stands in the cell,
    and rather none that a better rank has likely got. One after another: from the best rank on,
    one position at a time, and the cell is read anew with each gene that was put in; Q then blocks
    whatever stands in the cell by then, so that no gene is put in twice, while P may repeat one.
    Tokens that are no genes are never put in.

    Args:
      params: of a RankEncoder.
      model: its settings.
      cells: N cells of length L in the model's encoding, `<mask>` where a gene is wanted.
      special: tokens that are no genes; the first gene's token follows them.
      read: "P" or "Q".
      order: "at_once", or "one_by_one", whose time grows with the masked positions of a cell.

    Returns:
      int32 [N, L], the tokens with all masks filled.

    Raises:
      ValueError: another reading or order.
    """
    if read not in ("P", "Q") or order not in ORDERS:
        raise ValueError(
            f"read is {read!r} and order {order!r}; give 'P' or 'Q', 'at_once' or 'one_by_one'"
        )
    tokens_NxL, parts = cells.tokens_BxL, []
    filled_NxL = tokens_NxL.copy()
    with embed.everywhere(params) as (params, mesh):
        bias_V = jnp.where(jnp.arange(len(params["bias"])) < special, -jnp.inf, params["bias"])
        for rows, batch in embed.by_length(cells, mesh):
            most = int((tokens_NxL[rows] == MASK).sum(1).max())
            if most:
                slots = min(batch.tokens_BxL.shape[1], -(-most // SLOTS) * SLOTS)
                fixed = {"model": model, "slots": slots, "read": read, "order": order}
                parts.append((rows, _fill(params | {"bias": bias_V}, batch, **fixed)))
        told = {"desc": "filling", "unit": "cells", "leave": False, "delay": 5}
        with tqdm(total=sum(len(rows) for rows, _ in parts), **told) as bar:
            for rows, part in parts:
                of_rows_BxL = jax.device_get(part)
                filled_NxL[rows, : of_rows_BxL.shape[1]] = of_rows_BxL[: len(rows)]
                bar.update(len(rows))
    return filled_NxL


@functools.partial(jax.jit, static_argnames=("model", "slots", "read", "order"))
def _fill(params: dict, cells: Cells, model, slots: int, read: Reading, order: Order):
    tokens_BxL, encoder = cells.tokens_BxL, RankEncoder(model, len(params["bias"]))
    length = tokens_BxL.shape[1]
    # Positions of the masks in rank order; beyond the last where a cell has fewer.
    masked_BxL = jnp.where(tokens_BxL == MASK, jnp.arange(length), length)
    slots_BxM = jnp.sort(masked_BxL, axis=1)[:, :slots]

    def predicted(tokens_BxL, slots_BxM):
        wanted_BxM = slots_BxM < length
        known_BxV = jax.vmap(_standing, (0, None))(tokens_BxL, encoder.vocabulary)
        places_BxM = jnp.where(wanted_BxM, slots_BxM, 0)
        hidden_BxMxD = encoder.apply(
            {"params": params}, tokens_BxL, places_BxM, None, cells.values_BxL
        )
        labels_BxM = jnp.where(wanted_BxM, MASK, -1)  # any: the loss is not read
        arrays = hidden_BxMxD, params["embedding"], params["bias"], labels_BxM, known_BxV
        out = cab_loss(*arrays, similarity="none", implementation="blocked")
        return out.top_q_BxM if read == "Q" else out.top_p_BxM

    def put(tokens_BxL, slots_BxM):
        genes_BxM = predicted(tokens_BxL, slots_BxM)
        return jax.vmap(lambda cell, at, gene: cell.at[at].set(gene, mode="drop"))(
            tokens_BxL, slots_BxM, genes_BxM
        )

    if order == "at_once":
        return put(tokens_BxL, slots_BxM)
    return jax.lax.fori_loop(
        0, (slots_BxM < length).sum(1).max(),
        lambda m, tokens_BxL: put(
            tokens_BxL, jax.lax.dynamic_slice_in_dim(slots_BxM, m, 1, axis=1)
        ),
        tokens_BxL,
    )  # fmt: skip


def _standing(tokens_L: jax.Array, vocabulary: int) -> jax.Array:
    """bool [V]: the gene stands in the cell."""
    return jnp.zeros(vocabulary, bool).at[tokens_L].set(True)
