"""Some slots at a time over the whole vocabulary: the CAB loss and its gradient in plain XLA.

What a slot needs of the others is what blocks it and what it is compared with: arrays B x V, made
of the slots before it, and on the way back of those behind it and of all. So one walk over the
slots computes the loss, and one back the gradient, each with one product of states and embedding.
Inside, arrays are K x B x V, K at most an eighth of the slots; what blocks is kept at each K-th
slot. Empty slots behind the last filled one of all cells are not walked over, but for the rest of
K. Formulas and names are those of `passes`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab import passes
from kernels.cab.passes import SMALLEST, Cut, Rows, Softmax, axes_of, vary

PARTS = 8  # that the slots are cut into, at least
PRODUCT = 192  # rows of a product of matrices that are enough to fill a machine
FEWEST = 16  # slots at a time where cells are many: with fewer, more sums would be kept


class _Before(NamedTuple):
    """Of the slots before one: (1 - known) times the product of their u, and the sum of their q
    scaled for the similarity; None where there is no similarity."""

    blocked_BxV: jax.Array
    rows_BxV: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cab(cut: Cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV):
    """See `api.cab_loss`. Returns (cross entropy, pairs, top P, top Q)."""
    return _forward(cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV)[0]


def _forward(cut: Cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV):
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM
    genes_V, slots = _genes(cut, bias_V), _cut_slots(hidden_BxMxD, labels_BxM)
    filled = _filled(slots[1])
    axes = axes_of(*arrays, known_BxV)
    dtype = jnp.promote_types(hidden_BxMxD.dtype, jnp.float32)
    unknown = vary((~known_BxV).astype(dtype), axes)
    wanted = cut.similarity != "none"

    def part(before: _Before, slots):
        hidden_KxBxD, label_KxB = slots
        x_KxBxV = _logits(hidden_KxBxD, embedding_VxD, bias_V)
        peak_KxB, top_KxB = _first_highest(cut, x_KxBxV, genes_V)
        end, found = jax.lax.scan(slot, before, (x_KxBxV, label_KxB, peak_KxB, top_KxB))
        return end, (before.blocked_BxV, found)

    def slot(before: _Before, slot):
        x, label, peak, top = slot
        powers = jnp.exp(x - peak[:, None])
        rest = _sum(cut, jnp.where(_is(top, genes_V), 0.0, powers))
        softmax = Softmax(top, peak, rest, _over_vocabulary(cut, _at(label, x, genes_V)))
        rows = passes.rows_of(softmax, label)
        P = powers * rows.inverse[:, None]
        q = before.blocked_BxV * P
        true = _over_vocabulary(cut, _at(label, q, genes_V))
        other = _sum(cut, jnp.where(_is(label, genes_V), 0.0, q))
        cross_entropy, rows, total = passes.cross_entropy(cut.variant, rows, softmax, true, other)
        blocked, alike = before.blocked_BxV * _left(P, rows, genes_V), jnp.zeros_like(total)
        top_q = _first_highest(cut, q, genes_V)[1]
        if not wanted:
            return _Before(blocked, None), (rows, cross_entropy, alike, top_q)
        # Of q / its sum: q itself underflows where known genes hold nearly all of P.
        unit = jnp.maximum(true + other, SMALLEST)
        square = _sum(cut, jnp.square(q / unit[:, None])) if cut.similarity == "cosine" else None
        divisor, free = passes.divisor(total, unit, square)
        scale = jnp.where(label >= 0, 1.0 / divisor, 0.0)
        rows = rows._replace(scale=scale, along=free.astype(scale.dtype))
        row = q * scale[:, None]
        alike = _sum(cut, row * before.rows_BxV)
        return _Before(blocked, before.rows_BxV + row), (rows, cross_entropy, alike, top_q)

    start = _Before(unknown, jnp.zeros_like(unknown) if wanted else None)
    end, (blocked_SxBxV, found) = _walk(part, start, slots, filled)
    rows, cross_entropy, alike, top_q = found

    def whole(of_slots):
        return of_slots.reshape(-1, of_slots.shape[-1])[: labels_BxM.shape[1]].T

    outputs = cross_entropy.sum(), alike.sum(), whole(rows.top), whole(top_q)
    return outputs, (arrays, rows, blocked_SxBxV, end.rows_BxV, filled)


def _backward(cut: Cut, saved, cotangents):
    arrays, rows, blocked_SxBxV, all_rows_BxV, filled = saved
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM = arrays
    genes_V, (hidden_SxKxBxD, _) = _genes(cut, bias_V), _cut_slots(hidden_BxMxD, labels_BxM)
    rows = passes.with_cotangents(rows, *cotangents[:2])

    def part(carry, slots):
        w_BxV, d_embedding_DxV, d_bias_V = carry
        blocked_BxV, hidden_KxBxD, rows = slots
        x_KxBxV = _logits(hidden_KxBxD, embedding_VxD, bias_V)
        P_KxBxV = jnp.exp(x_KxBxV - rows.peak[..., None]) * rows.inverse[..., None]
        _, q_KxBxV = jax.lax.scan(forwards, blocked_BxV, (P_KxBxV, rows))
        walk = P_KxBxV, q_KxBxV, rows
        w_BxV, d_logits = jax.lax.scan(backwards, w_BxV, walk, reverse=True)
        low = d_logits.astype(hidden_KxBxD.dtype)
        accumulate = {"preferred_element_type": d_logits.dtype}
        d_hidden_KxBxD = jnp.einsum("kbv,vd->kbd", low, embedding_VxD, **accumulate)
        # D x V, not V x D: the product then needs no transposed copy of the large operand.
        d_embedding_DxV += jnp.einsum("kbd,kbv->dv", hidden_KxBxD, low, **accumulate)
        rows_NxV = d_logits.reshape(-1, d_logits.shape[-1])
        ones_N = jnp.ones(len(rows_NxV), d_logits.dtype)  # a product, as in `_sum`
        precision = jax.lax.Precision.HIGHEST
        d_bias_V += jnp.einsum("nv,n->v", rows_NxV, ones_N, precision=precision)
        return (w_BxV, d_embedding_DxV, d_bias_V), d_hidden_KxBxD

    def forwards(blocked, slot):
        P, row = slot
        return blocked * _left(P, row, genes_V), blocked * P

    def backwards(w_behind, slot):
        P, q, row = slot
        is_label, is_top = _is(row.label, genes_V), _is(row.top, genes_V)
        w = jnp.where(is_label, row.at_label[:, None], q * row.beside[:, None])
        sum_w = row.sum_w
        if all_rows_BxV is not None:
            mine = q * row.scale[:, None]
            others = all_rows_BxV - mine
            alike = _sum(cut, mine * others)
            toward = mine if cut.similarity == "cosine" else 1.0
            w += row.weight[:, None] * mine * (others - (row.along * alike)[:, None] * toward)
            sum_w += row.weight * jnp.where(row.along > 0, 0.0, alike)
        s = jnp.where(is_top, 0.0, P / (1.0 - jnp.where(is_top, 0.0, P)) * w_behind)
        elsewhere = _sum(cut, s)
        at_top = _at(row.top, P, genes_V) / row.left * _at(row.top, w_behind, genes_V)
        at_top = _over_vocabulary(cut, at_top)
        through = jnp.where(is_top, w_behind, -at_top[:, None]) + (sum_w - elsewhere)[:, None]
        d_logits = w - s - P * through
        if cut.variant == "plain":
            on_p = row.on_p[:, None]
            d_logits += on_p * jnp.where(is_label, -_left(P, row, genes_V), P)
        return w_behind + w, d_logits

    zero = jnp.zeros_like(blocked_SxBxV[0])
    like = axes_of(zero, *arrays)
    of_genes = jnp.zeros((embedding_VxD.shape[1], len(bias_V)), zero.dtype), jnp.zeros_like(zero[0])
    start = jax.tree.map(lambda a: vary(a, like), (zero, *of_genes))
    (_, d_embedding_DxV, d_bias_V), d_hidden = _walk(
        part, start, (blocked_SxBxV, hidden_SxKxBxD, rows), filled, reverse=True
    )
    d_hidden_MxBxD = d_hidden.reshape(-1, *d_hidden.shape[2:])[: hidden_BxMxD.shape[1]]
    grads = jnp.swapaxes(d_hidden_MxBxD, 0, 1), d_embedding_DxV.T, d_bias_V
    return *passes.reduced(cut, grads, arrays), None, None


cab.defvjp(_forward, _backward)


def at_once(cells: int, slots: int) -> int:
    """K, for a batch of so many cells."""
    return min(-(-slots // PARTS), max(FEWEST, PRODUCT // cells))


def _cut_slots(hidden_BxMxD, labels_BxM):
    """Hidden states and labels, S x K x B (x D); what fills the last part is empty slots."""
    cells, slots = labels_BxM.shape
    parts = -(-slots // at_once(cells, slots))
    count = -(-slots // parts)
    fill = (0, parts * count - slots)
    hidden = jnp.pad(jnp.swapaxes(hidden_BxMxD, 0, 1), (fill, (0, 0), (0, 0)))
    labels = jnp.pad(labels_BxM.T, (fill, (0, 0)), constant_values=-1)
    return hidden.reshape(parts, count, cells, -1), labels.reshape(parts, count, cells)


def _filled(labels_SxKxB):
    """How many of the parts hold all filled slots of this device's cells.

    Devices that share the vocabulary share their cells, so that they make the same turns; the
    others wait for none.
    """
    parts = jnp.arange(1, len(labels_SxKxB) + 1)
    return jnp.where((labels_SxKxB >= 0).any((1, 2)), parts, 0).max()


def _walk(part, start, parts, filled, reverse=False):
    """`jax.lax.scan` over the first `filled` of the parts; what it gives of the others is zero."""

    def step(turn, state):
        carry, found = state
        at = filled - 1 - turn if reverse else turn
        of_part = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, at, keepdims=False), parts)
        carry, new = part(carry, of_part)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=at, axis=0)
        return carry, jax.tree.map(put, found, new)

    like = jax.eval_shape(lambda: jax.lax.scan(part, start, parts)[1])
    zeros = jax.tree.map(lambda a: vary(jnp.zeros(a.shape, a.dtype), axes_of(a)), like)
    return jax.lax.fori_loop(0, filled, step, (start, zeros))


def _genes(cut: Cut, bias_V):
    """Ids of this device's part of the vocabulary."""
    first = 0 if cut.axis is None else jax.lax.axis_index(cut.axis) * len(bias_V)
    return first + jnp.arange(len(bias_V), dtype=jnp.int32)


def _logits(hidden_KxBxD, embedding_VxD, bias_V):
    dtype = jnp.promote_types(hidden_KxBxD.dtype, jnp.float32)
    product = jnp.einsum(
        "kbd,vd->kbv", hidden_KxBxD, embedding_VxD, preferred_element_type=dtype
    )
    return product + bias_V.astype(dtype)


def _first_highest(cut: Cut, values_V, genes_V):
    """The highest of each last axis, which is finite, and its gene; the first among equals."""
    highest = jnp.maximum(values_V.max(-1), jnp.finfo(values_V.dtype).min)
    if cut.axis is not None:
        highest = jax.lax.pmax(highest, cut.axis)
    # Two plain reductions: XLA's argmax on CPU is one slow loop, ten times their time.
    none = jnp.iinfo(jnp.int32).max
    gene = jnp.where(values_V == highest[..., None], genes_V, none).min(-1)
    return highest, gene if cut.axis is None else jax.lax.pmin(gene, cut.axis)


def _left(P_BxV, row: Rows, genes_V):
    """u = 1 - P."""
    return jnp.where(_is(row.top, genes_V), row.left[:, None], 1.0 - P_BxV)


def _is(gene_B, genes_V):
    return gene_B[:, None] == genes_V


def _at(gene_B, values_BxV, genes_V):
    """The value at a gene, 0 where it is not in this part of the vocabulary."""
    place = jnp.clip(gene_B - genes_V[0], 0, len(genes_V) - 1)
    found = jnp.take_along_axis(values_BxV, place[:, None], 1)[:, 0]
    return jnp.where(gene_B == genes_V[place], found, 0.0)


def _sum(cut: Cut, values_BxV):
    """Sums over the whole vocabulary."""
    # A product: on CPU quicker than XLA's sum of one long row.
    ones = jnp.ones(values_BxV.shape[1], values_BxV.dtype)
    return _over_vocabulary(cut, jnp.dot(values_BxV, ones, precision=jax.lax.Precision.HIGHEST))


def _over_vocabulary(cut: Cut, sums_B):
    return sums_B if cut.axis is None else jax.lax.psum(sums_B, cut.axis)
