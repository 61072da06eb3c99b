"""The passes on Hopper GPUs (H100, H200), from bfloat16 hidden states: see `pallas_gpu_kernels`.

What the kernels leave per block of genes is merged here. Two plain matrix products stay with XLA:
the Gram matrix, and those that turn dL/dx into gradients. For them the kernels write q (float32)
or dL/dx (bfloat16) of at most GROUP genes at a time, so beside inputs, their bfloat16 copies and
gradients O(B M GROUP) is kept, and B M M for the Gram matrix.

The embedding is rounded to bfloat16 as the hidden states are; products add up in float32, and all
that follows is float32. dL/dx is rounded to bfloat16 before it is multiplied into gradients.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from kernels.cab import pallas_gpu_kernels as kernels
from kernels.cab.pallas_gpu_program import PART, TILE, WIDTH, Operands, varying
from kernels.cab.passes import SMALLEST, Assigned, Rows, Softmax

GROUP = 1024  # genes whose q or dL/dx are in memory at once, at most
MOST_SLOTS = 4096  # of a cell: the kernels keep the start of each tile of slots in shared memory
CAPABILITY = "9.0"  # of the GPUs that have the kernels' instructions: later ones lack them too


class _Genes(NamedTuple):
    """Groups of consecutive genes, in whole programs; what fills the last has probability 0."""

    start_K: jax.Array
    embedding_KxDxW: jax.Array
    bias_KxW: jax.Array
    unknown_KxBxW: jax.Array | None


class _Slots(NamedTuple):
    """Slots in whole tiles: hidden states, their genes counted from the first, their numbers."""

    hidden_BxMxD: jax.Array
    ids_BxIxM: jax.Array
    numbers_BxFxM: jax.Array | None
    M: int


def softmax(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first) -> Softmax:
    """See `passes`: of each slot the gene with the highest logit, that logit, and the rest."""
    genes = _genes(embedding_VxD, bias_V, None, len(bias_V))
    slots = _slots(hidden_BxMxD, first, len(bias_V), (labels_BxM,), ())
    top, peak, rest, true = kernels.softmax(_operands(slots, jax.tree.map(lambda a: a[0], genes)))
    best_1xBxM, highest = peak.argmax(0)[None], peak.max(0)
    is_best = jnp.arange(len(peak))[:, None, None] == best_1xBxM
    # Beside the highest logit of all, those of the other blocks count among the rest.
    rest = ((rest + ~is_best) * jnp.exp(peak - highest)).sum(0)
    top = first + jnp.take_along_axis(top, best_1xBxM, 0)[0]
    return Softmax(top, highest, rest, true.sum(0))


def assignment(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, gram: bool
) -> Assigned:
    """See `passes`: sums of q, its highest gene, and the Gram matrix where it is asked for."""
    genes = _genes(embedding_VxD, bias_V, known_BxV, GROUP if gram else len(bias_V))
    slots = _slots(hidden_BxMxD, first, len(bias_V), rows[:2], rows[2:])

    def update(carry, group):
        true, other, best, top, *q = kernels.assignment(_operands(slots, group), gram)
        if gram:
            # Of q / its highest: q itself underflows where known genes hold nearly all of P.
            highest, products = carry
            higher = jnp.maximum(highest, best.max(0))
            part_BxMxW, shrink = q[0] * (1 / higher)[..., None], highest / higher
            added = jnp.einsum(
                "biw,bjw->bij", part_BxMxW, part_BxMxW,
                precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
            )
            carry = higher, products * shrink[:, :, None] * shrink[:, None] + added
        return carry, (true, other, best, group.start_K + top)

    cells, M = labels_BxM.shape
    start = None
    if gram:
        highest = jnp.full((cells, M), SMALLEST, jnp.float32)
        start = varying((highest, jnp.zeros((cells, M, M), jnp.float32)), slots, genes)
    carry, found = lax.scan(update, start, genes)
    true, other, best, top = (a.reshape(-1, cells, M) for a in found)
    top = first + jnp.take_along_axis(top, best.argmax(0)[None], 0)[0]
    return Assigned(true.sum(0), other.sum(0), best.max(0), top, carry[1] if gram else None)


def weights(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, similarity: str
):
    """See `passes`: of each slot, B x M, the sum of s at its highest gene and elsewhere."""
    genes = _genes(embedding_VxD, bias_V, known_BxV, len(bias_V))
    slots = _slots(hidden_BxMxD, first, len(bias_V), rows[:2], rows[2:])
    operands = _operands(slots, jax.tree.map(lambda a: a[0], genes))
    at_top, elsewhere = kernels.weights(operands, similarity)
    return at_top.sum(0), elsewhere.sum(0)


def gradients(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows,
    at_top_BxM, elsewhere_BxM, similarity: str,
):
    """See `passes`: gradients by hidden states, embedding and bias, in float32.

    `known_BxV` is None for the plain masked language model.
    """
    genes = _genes(embedding_VxD, bias_V, known_BxV, GROUP)
    sums = () if known_BxV is None else (at_top_BxM, elsewhere_BxM)
    slots = _slots(hidden_BxMxD, first, len(bias_V), rows[:2], (*rows[2:], *sums))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def update(d_hidden, group):
        operands = _operands(slots, group)
        if known_BxV is None:
            d_logits_BxMxW, d_bias_Bx1xW = kernels.d_logits_of_masked_lm(operands)
        else:
            d_logits_BxMxW, d_bias_Bx1xW = kernels.d_logits(operands, similarity)
        d_hidden += product("bmw,dw->bmd", d_logits_BxMxW, group.embedding_KxDxW)
        d_embedding = product("bmw,bmd->wd", d_logits_BxMxW, slots.hidden_BxMxD[:, : slots.M])
        return d_hidden, (d_embedding, d_bias_Bx1xW.sum((0, 1)))

    (V, D), (cells, M) = embedding_VxD.shape, labels_BxM.shape
    start = jnp.zeros((cells, M, slots.hidden_BxMxD.shape[2]), jnp.float32)
    d_hidden, (d_embedding, d_bias) = lax.scan(update, varying(start, slots, genes), genes)
    d_embedding = d_embedding.reshape(-1, d_embedding.shape[2])
    return d_hidden[..., :D], d_embedding[:V, :D], d_bias.reshape(-1)[:V]


def _genes(embedding_VxD, bias_V, known_BxV, group: int) -> _Genes:
    """The vocabulary in equal groups of at most so many genes, rounded up to whole programs."""
    V = len(bias_V)
    count = -(-V // group)
    width = -(-V // (count * WIDTH)) * WIDTH
    fill = count * width - V
    embedding = _whole_parts(embedding_VxD.astype(jnp.bfloat16))
    embedding = jnp.pad(embedding, ((0, fill), (0, 0))).reshape(count, width, -1)
    bias = jnp.pad(bias_V.astype(jnp.float32), (0, fill), constant_values=-jnp.inf)
    unknown = None
    if known_BxV is not None:
        unknown = jnp.pad(~known_BxV, ((0, 0), (0, fill))).astype(jnp.float32)
        unknown = jnp.swapaxes(unknown.reshape(-1, count, width), 0, 1)
    starts = jnp.arange(count, dtype=jnp.int32) * width
    return _Genes(starts, jnp.swapaxes(embedding, 1, 2), bias.reshape(count, width), unknown)


def _slots(hidden_BxMxD, first, V: int, genes, numbers) -> _Slots:
    """Genes (labels, those with the highest P) not among the V here become -1."""
    _refuse(hidden_BxMxD)
    M = hidden_BxMxD.shape[1]
    fill = ((0, 0), (0, 0), (0, -M % TILE))
    ids = (jnp.stack(genes, 1) - first).astype(jnp.int32)
    ids = jnp.pad(jnp.where((ids >= 0) & (ids < V), ids, -1), fill, constant_values=-1)
    hidden = jnp.pad(_whole_parts(hidden_BxMxD), ((0, 0), (0, -M % TILE), (0, 0)))
    return _Slots(hidden, ids, jnp.pad(jnp.stack(numbers, 1), fill) if numbers else None, M)


def _whole_parts(array):
    """The last axis, D, filled up with zeros to whole parts of a product."""
    return jnp.pad(array, ((0, 0),) * (array.ndim - 1) + ((0, -array.shape[-1] % PART),))


def _operands(slots: _Slots, group: _Genes) -> Operands:
    ids = slots.ids_BxIxM
    ids = jnp.where(ids >= 0, ids - group.start_K, -1)
    of_genes = group.embedding_KxDxW, group.bias_KxW, group.unknown_KxBxW
    return Operands(slots.hidden_BxMxD, *of_genes, ids, slots.numbers_BxFxM, slots.M)


def _refuse(hidden_BxMxD):
    reason = None
    if hidden_BxMxD.dtype != jnp.bfloat16:
        reason = f"multiply bfloat16 hidden states, got {hidden_BxMxD.dtype}"
    elif hidden_BxMxD.shape[1] > MOST_SLOTS:
        reason = f"take at most {MOST_SLOTS} masked slots of a cell, got {hidden_BxMxD.shape[1]}"
    elif jax.default_backend() == "gpu":
        found = jax.devices()[0].compute_capability
        if found != CAPABILITY:
            reason = f"need a Hopper GPU, compute capability {CAPABILITY}, got {found}"
    if reason is not None:
        raise NotImplementedError(f"the Hopper kernels {reason}; use implementation='blocked'")
