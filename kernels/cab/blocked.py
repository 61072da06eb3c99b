"""The passes in plain XLA: a scan over blocks of the vocabulary, inside it one over the slots.

Arrays inside are M x B x W, W genes of a block: slots first, because blocking is a recurrence over
them. What is kept beside inputs and gradients is O(B M W), and B M M for the Gram matrix.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab.passes import SMALLEST, Assigned, Rows, Softmax, axes_of, vary

FILL = -2  # no label: those are genes, or -1
BLOCK = 512  # genes of a block, at most
STRIP = 128  # slots of the Gram matrix that are multiplied at once


class _Blocks(NamedTuple):
    """Embedding, bias, gene ids and (for CAB) the unknown genes, cut along the vocabulary."""

    embedding_KxWxD: jax.Array
    bias_KxW: jax.Array
    genes_KxW: jax.Array  # FILL where there is none
    unknown_KxBxW: jax.Array | None


def softmax(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first) -> Softmax:
    """See `passes`: of each slot the gene with the highest logit, that logit, and the rest."""
    hidden_MxBxD, label = jnp.swapaxes(hidden_BxMxD, 0, 1), labels_BxM.T
    blocks = _cut(embedding_VxD, bias_V, None, first)

    def update(carry, block):
        top, peak, rest, true = carry
        x = _logits(hidden_MxBxD, block)
        peak_here, top_here = _highest(x, block)
        # A block whose every bias is -inf has that as its peak.
        finite_peak = jnp.maximum(peak_here, jnp.finfo(x.dtype).min)[..., None]
        rest_here = jnp.where(_is(top_here, block), 0.0, jnp.exp(x - finite_peak)).sum(-1)
        true += _at(label, x, block)
        higher = jnp.maximum(peak, peak_here)
        behind = jnp.exp(jnp.minimum(peak, peak_here) - higher)
        is_here = peak_here > peak
        rest = jnp.where(is_here, rest_here + (1 + rest) * behind, rest + (1 + rest_here) * behind)
        return (jnp.where(is_here, top_here, top), higher, rest, true), None

    dtype = _accumulate(hidden_BxMxD)
    start = (
        jnp.zeros(label.shape, jnp.int32), jnp.full(label.shape, jnp.finfo(dtype).min, dtype),
        jnp.zeros(label.shape, dtype), jnp.zeros(label.shape, dtype),
    )
    found, _ = _scan(update, start, blocks, hidden_BxMxD, labels_BxM)
    return Softmax(*(a.T for a in found))


def assignment(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, gram: bool
) -> Assigned:
    """See `passes`: sums of q, its highest gene, and the Gram matrix where it is asked for."""
    hidden_MxBxD, rows = jnp.swapaxes(hidden_BxMxD, 0, 1), _by_slot(rows)
    blocks = _cut(embedding_VxD, bias_V, known_BxV, first)

    def update(carry, block):
        true, other, best, top, products = carry
        P = _probabilities(hidden_MxBxD, block, rows)

        def forwards(c, slot):
            P, row = slot
            return c * _left(P, row, block), c * P

        _, q = jax.lax.scan(forwards, block.unknown_KxBxW.astype(P.dtype), (P, _columns(rows)))
        true += _at(rows.label, q, block)
        other += jnp.where(_is(rows.label, block), 0.0, q).sum(-1)
        best_here, top_here = _highest(q, block)
        top = jnp.where(best_here > best, top_here, top)
        higher = jnp.maximum(best, best_here)
        if gram:
            # Of q / its highest: q itself underflows where known genes hold nearly all of P.
            scale = jnp.maximum(higher, SMALLEST)
            shrink = (jnp.maximum(best, SMALLEST) / scale).T
            part_BxMxW = jnp.swapaxes(q * (1 / scale)[..., None], 0, 1)
            products = [
                _strip(part_BxMxW, end) + strip * shrink[:, end - strip.shape[1] : end, None]
                * shrink[:, None, :end]
                for strip, end in zip(products, ends, strict=True)
            ]
        return (true, other, higher, top, products), None

    zero = jnp.zeros_like(rows.peak)
    slots, cells = zero.shape
    ends = [*range(STRIP, slots, STRIP), slots]
    products = [jnp.zeros((cells, (end - 1) % STRIP + 1, end), zero.dtype) for end in ends]
    start = zero, zero, zero - 1, jnp.zeros(zero.shape, jnp.int32), products if gram else None
    found, _ = _scan(update, start, blocks, hidden_BxMxD, labels_BxM, known_BxV)
    return Assigned(*(a.T for a in found[:4]), _whole(found[4], slots) if gram else None)


def _strip(part_BxMxW, end: int):
    """Products of the slots of one strip with those up to its end: the lower triangle is enough."""
    first = (end - 1) // STRIP * STRIP
    return jnp.einsum(
        "biw,bjw->bij", part_BxMxW[:, first:end], part_BxMxW[:, :end],
        precision=jax.lax.Precision.HIGHEST, preferred_element_type=part_BxMxW.dtype,
    )


def _whole(strips, slots: int):
    """The symmetric matrix of which the strips hold the lower triangle."""
    padded = [jnp.pad(strip, ((0, 0), (0, 0), (0, slots - strip.shape[2]))) for strip in strips]
    lower = jnp.tril(jnp.concatenate(padded, 1))
    return lower + jnp.swapaxes(jnp.tril(lower, -1), 1, 2)


def weights(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, similarity: str
):
    """See `passes`: of each slot, B x M, the sum of s at its highest gene and elsewhere."""
    hidden_MxBxD, rows = jnp.swapaxes(hidden_BxMxD, 0, 1), _by_slot(rows)
    blocks = _cut(embedding_VxD, bias_V, known_BxV, first)

    def update(carry, block):
        P = _probabilities(hidden_MxBxD, block, rows)
        s = _chain(P, block, rows, similarity, lambda P, u, w, w_later, row: P / u * w_later)
        at_top, elsewhere = carry
        elsewhere += jnp.where(_is(rows.top, block), 0.0, s).sum(-1)
        return (at_top + _at(rows.top, s, block), elsewhere), None

    zero = jnp.zeros_like(rows.peak)
    found, _ = _scan(update, (zero, zero), blocks, hidden_BxMxD, labels_BxM, known_BxV)
    return tuple(a.T for a in found)


def gradients(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows,
    at_top_BxM, elsewhere_BxM, similarity: str,
):
    """See `passes`: gradients by hidden states, embedding and bias, in the accumulating type.

    `known_BxV` is None for the plain masked language model.
    """
    hidden_MxBxD, rows = jnp.swapaxes(hidden_BxMxD, 0, 1), _by_slot(rows)
    blocks = _cut(embedding_VxD, bias_V, known_BxV, first)
    dtype = _accumulate(hidden_BxMxD)

    def by_logits(block, P, u, w, w_later, row, at_top, elsewhere):
        through = jnp.where(row.top == block.genes_KxW, w_later, w_later / u - at_top) - elsewhere
        return w - P * (row.sum_w + through) + by_logits_plain(block, P, u, row)

    def by_logits_plain(block, P, u, row):
        return row.on_p * jnp.where(row.label == block.genes_KxW, -u, P)

    def update(d_hidden, block):
        P = _probabilities(hidden_MxBxD, block, rows)
        if known_BxV is None:
            row = _columns(rows)
            d_logits = by_logits_plain(block, P, _left(P, row, block), row)
        else:
            use = functools.partial(by_logits, block)
            sums = _columns((at_top_BxM.T, elsewhere_BxM.T))
            d_logits = _chain(P, block, rows, similarity, use, *sums)
        low = d_logits.astype(hidden_MxBxD.dtype)
        d_hidden += jnp.einsum(
            "mbw,wd->mbd", low, block.embedding_KxWxD, preferred_element_type=dtype
        )
        # D x W, not W x D: the product then needs no transposed copy of the large operand.
        d_embedding = jnp.einsum("mbd,mbw->dw", hidden_MxBxD, low, preferred_element_type=dtype)
        return d_hidden, (d_embedding, d_logits.sum((0, 1)))

    start = jnp.zeros(hidden_MxBxD.shape, dtype)
    d_hidden, (d_embedding_KxDxW, d_bias) = _scan(
        update, start, blocks, hidden_BxMxD, labels_BxM, known_BxV
    )
    d_embedding = jnp.swapaxes(d_embedding_KxDxW, 1, 2).reshape(-1, embedding_VxD.shape[1])
    return (
        jnp.swapaxes(d_hidden, 0, 1),
        d_embedding[: len(bias_V)],
        d_bias.reshape(-1)[: len(bias_V)],
    )


def _chain(P_MxBxW, block: _Blocks, rows: Rows, similarity: str, use, *of_slots):
    """use(P, u, w, sum of all later w, row, ...) of each slot and gene of a block, M x B x W.

    Over the slots forwards, then backwards; `of_slots` are more arrays M x B x 1 for `use`.
    """
    unknown = block.unknown_KxBxW.astype(P_MxBxW.dtype)

    def forwards(carry, slot):
        c, earlier = carry
        P, row = slot
        q = c * P
        return (c * _left(P, row, block), earlier + q * row.scale), (q, earlier)

    def backwards(carry, slot):
        later, w_later = carry
        P, q, earlier, row, *of_slot = slot
        w = jnp.where(row.label == block.genes_KxW, row.at_label, q * row.beside)
        if similarity != "none":
            part = q * row.scale
            toward = part if similarity == "cosine" else 1.0
            w += row.weight * part * (earlier + later - row.along * toward)
            later += part
        return (later, w_later + w), use(P, _left(P, row, block), w, w_later, row, *of_slot)

    zero, row = jnp.zeros_like(unknown), _columns(rows)
    _, (q, earlier) = jax.lax.scan(forwards, (unknown, zero), (P_MxBxW, row))
    slots = P_MxBxW, q, earlier, row, *of_slots
    return jax.lax.scan(backwards, (zero, zero), slots, reverse=True)[1]


def _probabilities(hidden_MxBxD, block: _Blocks, rows: Rows):
    x = _logits(hidden_MxBxD, block)
    return jnp.exp(x - rows.peak[..., None]) * rows.inverse[..., None]


def _left(P, row: Rows, block: _Blocks):
    """u = 1 - P."""
    return jnp.where(row.top == block.genes_KxW, row.left, 1.0 - P)


def _logits(hidden_MxBxD, block: _Blocks):
    dtype = _accumulate(hidden_MxBxD)
    product = jnp.einsum(
        "mbd,wd->mbw", hidden_MxBxD, block.embedding_KxWxD, preferred_element_type=dtype
    )
    return product + block.bias_KxW.astype(dtype)


def _cut(embedding_VxD, bias_V, known_BxV, first) -> _Blocks:
    """Cuts the vocabulary into equal blocks; what fills the last has probability 0."""
    genes = width = len(bias_V)
    if genes > BLOCK:
        width = -(-genes // (-(-genes // BLOCK) * 64)) * 64
    count = -(-genes // width)
    fill = count * width - genes
    embedding = jnp.pad(embedding_VxD, ((0, fill), (0, 0))).reshape(count, width, -1)
    bias = jnp.pad(bias_V, (0, fill), constant_values=-jnp.inf).reshape(count, width)
    ids = first + jnp.arange(genes, dtype=jnp.int32)
    ids = jnp.pad(ids, (0, fill), constant_values=FILL).reshape(count, width)
    unknown = None
    if known_BxV is not None:
        padded = jnp.pad(~known_BxV, ((0, 0), (0, fill)))
        unknown = jnp.swapaxes(padded.reshape(-1, count, width), 0, 1)
    return _Blocks(embedding, bias, ids, unknown)


def _scan(update, start, blocks: _Blocks, *inputs):
    """`lax.scan` over blocks; `start` varies over the mesh axes that the inputs vary over."""
    axes = axes_of(*inputs, *blocks)
    return jax.lax.scan(update, jax.tree.map(lambda a: vary(a, axes), start), blocks)


def _highest(values, block: _Blocks):
    """The highest value and its gene; the first among equals."""
    here = values.max(-1)
    places = jnp.arange(values.shape[-1], dtype=jnp.int32)
    # Two plain reductions: XLA's argmax on CPU is one slow loop, ten times their time.
    at = jnp.where(values == here[..., None], places, values.shape[-1]).min(-1)
    return here, block.genes_KxW[0] + at


def _is(gene, block: _Blocks):
    return gene[..., None] == block.genes_KxW


def _at(gene, values, block: _Blocks):
    """The value at a gene, 0 where it is not in the block."""
    place = jnp.clip(gene - block.genes_KxW[0], 0, values.shape[-1] - 1)
    found = jnp.take_along_axis(values, place[..., None], -1)[..., 0]
    return jnp.where(gene == block.genes_KxW[place], found, 0.0)


def _by_slot(rows: Rows) -> Rows:
    return jax.tree.map(jnp.transpose, rows)


def _columns(rows):
    """Numbers of slots, M x B, that broadcast over genes: M x B x 1."""
    return jax.tree.map(lambda a: a[..., None], rows)


def _accumulate(hidden):
    return jnp.promote_types(hidden.dtype, jnp.float32)
