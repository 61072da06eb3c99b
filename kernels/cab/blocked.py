"""Hidden states at masked slots -> losses, one block of the vocabulary at a time.

No array of B x M x V ever exists: every pass recomputes the logits of a block from the hidden
states, and the backward pass is written by hand, so that what is kept beside inputs and gradients
is O(B M block). The passes over the vocabulary (arrays inside are M x B x W, W genes of a block,
rows first because the blocking is a recurrence over rows):

forward   1 normaliser of P, true gene's logit, top P   2 normaliser and norm of Q, top Q
          3 similarity of each row to all others
backward  4 sum_v P dP, which the softmax's gradient needs   5 gradients

With c_i = C_i(v), c_{i+1} = c_i (1 - P_i), and l_i the gradient of the loss by c_i:
  dP_i = c_i (dq_i - l_{i+1})        l_i = P_i dq_i + (1 - P_i) l_{i+1}
where q_i = P_i c_i and dq_i is the loss's gradient by q_i. The recurrence divides by nothing, so
it holds for P = 1 too.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab.reference import LOG_FLOOR, NORM_FLOOR

BLOCK = 512  # genes of a block, at most: a row block that stays in a core's cache
SMALLEST = 1e-30  # q below it stands in rows whose sum or norm is clamped


class _Blocks(NamedTuple):
    """Embedding, bias, first gene and (for CAB) the known genes, cut along the vocabulary."""

    embedding_KxWxD: jax.Array
    bias_KxW: jax.Array
    first_K: jax.Array
    unknown_KxBxW: jax.Array | None


class _Rows(NamedTuple):
    """What the passes learn about each masked slot, all M x B."""

    label: jax.Array
    log_normaliser: jax.Array  # of P
    total: jax.Array  # max(sum q, 1e-18)
    total_free: jax.Array  # not clamped
    true: jax.Array  # q at the true gene
    divisor: jax.Array  # what a row of q is divided by for the similarity
    divisor_free: jax.Array  # not clamped
    alike: jax.Array  # similarity of the row to all others of its cell


def masked_lm(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    """See `api.masked_lm_loss`. Returns (cross entropy, top P)."""
    return _masked_lm(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)


def cab(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity):
    """See `api.cab_loss`. Returns (cross entropy, pairs, top P, top Q)."""
    return _cab(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity)


@jax.custom_vjp
def _masked_lm(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    return _masked_lm_forward(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)[0]


def _masked_lm_forward(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    hidden_MxBxD, label = _by_row(hidden_BxMxD, labels_BxM)
    blocks = _cut(embedding_VxD, bias_V, None)
    log_normaliser, true_logit, top = _normaliser(hidden_MxBxD, blocks, label)
    log_P = true_logit - log_normaliser
    outputs = _clamped_nll(jnp.exp(log_P), log_P, label), top.T
    return outputs, (hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, log_normaliser, log_P)


def _masked_lm_backward(saved, cotangents):
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, log_normaliser, log_P = saved
    hidden_MxBxD, label = _by_row(hidden_BxMxD, labels_BxM)
    blocks = _cut(embedding_VxD, bias_V, None)
    weight = jnp.where((label >= 0) & (jnp.exp(log_P) > LOG_FLOOR), cotangents[0], 0.0)

    def gradient(block):
        P = jnp.exp(_logits(hidden_MxBxD, block) - log_normaliser[..., None])
        return weight[..., None] * (P - _is_label(label, block))

    grads = _gradients(hidden_MxBxD, blocks, gradient, embedding_VxD, bias_V)
    return *grads, None


_masked_lm.defvjp(_masked_lm_forward, _masked_lm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _cab(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity):
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV
    return _cab_forward(*arrays, variant, similarity)[0]


def _cab_forward(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity):
    hidden_MxBxD, label = _by_row(hidden_BxMxD, labels_BxM)
    blocks = _cut(embedding_VxD, bias_V, known_BxV)
    log_normaliser, true_logit, top_p = _normaliser(hidden_MxBxD, blocks, label)
    zero = jnp.zeros_like(log_normaliser)

    def sums(carry, block):
        total, square, true, best, top = carry
        P, c = _blocking(hidden_MxBxD, block, label, log_normaliser)
        q = P * c
        before = jnp.maximum(best, SMALLEST)
        best, top = _better(best, top, q, block)
        # Squares of q / max q: those of q itself underflow where known genes hold nearly all of P.
        scale = jnp.maximum(best, SMALLEST)
        part = q * (1.0 / scale)[..., None]
        square = square * (before / scale) ** 2 + (part * part).sum(-1)
        true += jnp.where(_is_label(label, block), q, 0.0).sum(-1)
        return (total + q.sum(-1), square, true, best, top), None

    start = zero, zero, zero, zero - 1, jnp.zeros(label.shape, jnp.int32)
    (total, square, true, best, top_q), _ = jax.lax.scan(sums, start, blocks)
    total_free = total > LOG_FLOOR
    total = jnp.where(total_free, total, LOG_FLOOR)
    divisor, divisor_free = total, total_free
    if similarity == "cosine":
        norm = jnp.sqrt(square) * jnp.maximum(best, SMALLEST)
        divisor_free = norm > NORM_FLOOR * total
        divisor = jnp.where(divisor_free, norm, NORM_FLOOR * total)
    rows = _Rows(label, log_normaliser, total, total_free, true, divisor, divisor_free, zero)
    if similarity != "none":
        alike, _ = jax.lax.scan(
            lambda alike, block: (alike + _alike(hidden_MxBxD, block, rows), None), zero, blocks
        )
        rows = rows._replace(alike=alike)
    log_P = true_logit - log_normaliser
    if variant == "recalibrated":
        Q = true / total
        cross_entropy = _clamped_nll(Q, jnp.log(jnp.maximum(Q, LOG_FLOOR)), label)
    else:
        cross_entropy = _clamped_nll(jnp.exp(log_P), log_P, label)
    outputs = cross_entropy, rows.alike.sum() / 2, top_p.T, top_q.T
    return outputs, (hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, rows, log_P)


def _cab_backward(variant, similarity, saved, cotangents):
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, rows, log_P = saved
    hidden_MxBxD, label = _by_row(hidden_BxMxD, labels_BxM)
    blocks = _cut(embedding_VxD, bias_V, known_BxV)
    real = label >= 0
    on_q = on_p = jnp.zeros_like(log_P)
    if variant == "recalibrated":
        on_q = jnp.where(real & (rows.true / rows.total > LOG_FLOOR), cotangents[0], 0.0)
    else:
        on_p = jnp.where(real & (jnp.exp(log_P) > LOG_FLOOR), cotangents[0], 0.0)

    def through_blocking(block):
        """P and P dP of a block, without what the plain cross-entropy adds."""
        P, c = _blocking(hidden_MxBxD, block, label, rows.log_normaliser)
        is_label = _is_label(label, block)
        true = jnp.where(on_q != 0, rows.true, 1.0)
        dq = jnp.where(is_label, -(on_q / true)[..., None], 0.0)
        dq += jnp.where(rows.total_free, on_q / rows.total, 0.0)[..., None]
        if similarity != "none":
            row = P * c / rows.divisor[..., None]
            others = _others(row)
            along = jnp.where(rows.divisor_free, rows.alike, 0.0)[..., None]
            toward = row if similarity == "cosine" else 1.0
            scale = jnp.where(real, cotangents[1] / rows.divisor, 0.0)[..., None]
            dq += scale * (others - along * toward)
        return P, P * c * (dq - _later_gradient(P, dq)), is_label

    def weighted(total, block):
        return total + through_blocking(block)[1].sum(-1), None

    mean, _ = jax.lax.scan(weighted, jnp.zeros_like(log_P), blocks)

    def gradient(block):
        P, P_dP, is_label = through_blocking(block)
        return P_dP + (on_p - mean)[..., None] * P - jnp.where(is_label, on_p[..., None], 0.0)

    grads = _gradients(hidden_MxBxD, blocks, gradient, embedding_VxD, bias_V)
    return *grads, None, None


_cab.defvjp(_cab_forward, _cab_backward)


def _by_row(hidden_BxMxD, labels_BxM):
    return jnp.swapaxes(hidden_BxMxD, 0, 1), labels_BxM.T


def _cut(embedding_VxD, bias_V, known_BxV) -> _Blocks:
    """Cuts the vocabulary into equal blocks; what fills the last has probability 0."""
    genes = len(bias_V)
    count = -(-genes // BLOCK)
    width = -(-genes // (count * 64)) * 64 if count > 1 else genes
    fill = count * width - genes
    embedding = jnp.pad(embedding_VxD, ((0, fill), (0, 0))).reshape(count, width, -1)
    bias = jnp.pad(bias_V, (0, fill), constant_values=-jnp.inf).reshape(count, width)
    unknown = None
    if known_BxV is not None:
        padded = jnp.pad(~known_BxV, ((0, 0), (0, fill)))
        unknown = jnp.swapaxes(padded.reshape(-1, count, width), 0, 1)
    return _Blocks(embedding, bias, jnp.arange(count) * width, unknown)


def _logits(hidden_MxBxD, block: _Blocks):
    accumulate = jnp.promote_types(hidden_MxBxD.dtype, jnp.float32)
    product = jnp.einsum(
        "mbd,wd->mbw", hidden_MxBxD, block.embedding_KxWxD, preferred_element_type=accumulate
    )
    return product + block.bias_KxW.astype(accumulate)


def _is_label(label, block: _Blocks):
    genes = block.first_K + jnp.arange(block.bias_KxW.shape[-1])
    return label[..., None] == genes


def _better(best, top, values, block: _Blocks):
    """The highest value so far and its gene; the earlier gene among equals."""
    here = values.max(-1)
    genes = jnp.arange(values.shape[-1], dtype=jnp.int32)
    # Two plain reductions: XLA's argmax on CPU is one slow loop, ten times their time.
    at = jnp.where(values == here[..., None], genes, values.shape[-1]).min(-1)
    gene = (block.first_K + at).astype(jnp.int32)
    return jnp.maximum(best, here), jnp.where(here > best, gene, top)


def _normaliser(hidden_MxBxD, blocks, label):
    """Pass 1: log sum exp of the logits, the true gene's logit, the gene with the highest."""
    accumulate = jnp.promote_types(hidden_MxBxD.dtype, jnp.float32)

    def update(carry, block):
        best, total, true, top = carry
        logits = _logits(hidden_MxBxD, block)
        higher, top = _better(best, top, logits, block)
        total = total * jnp.exp(best - higher) + jnp.exp(logits - higher[..., None]).sum(-1)
        true += jnp.where(_is_label(label, block), logits, 0.0).sum(-1)
        return (higher, total, true, top), None

    zero = jnp.zeros(label.shape, accumulate)
    lowest = jnp.full(label.shape, jnp.finfo(accumulate).min, accumulate)
    start = lowest, zero, zero, jnp.zeros(label.shape, jnp.int32)
    (best, total, true, top), _ = jax.lax.scan(update, start, blocks)
    return best + jnp.log(total), true, top


def _blocking(hidden_MxBxD, block, label, log_normaliser):
    """P of a block, 0 in empty slots, and c, the share of each gene that earlier rows left."""
    P = jnp.exp(_logits(hidden_MxBxD, block) - log_normaliser[..., None])
    P = jnp.where((label >= 0)[..., None], P, 0.0)
    _, c = jax.lax.scan(
        lambda c, P_i: (c * (1.0 - P_i), c), block.unknown_KxBxW.astype(P.dtype), P
    )
    return P, c


def _later_gradient(P, dq):
    """l_{i+1} of every row: the gradient by c that comes from the rows after it."""
    _, later = jax.lax.scan(
        lambda later, row: (row[0] * row[1] + (1.0 - row[0]) * later, later),
        jnp.zeros_like(P[0]),
        (P, dq),
        reverse=True,
    )
    return later


def _others(row):
    """Sum of all other rows of a cell, without subtracting the row itself from the total."""
    def add(total, r):
        return total + r, total

    _, earlier = jax.lax.scan(add, jnp.zeros_like(row[0]), row)
    _, later = jax.lax.scan(add, jnp.zeros_like(row[0]), row, reverse=True)
    return earlier + later


def _alike(hidden_MxBxD, block, rows: _Rows):
    P, c = _blocking(hidden_MxBxD, block, rows.label, rows.log_normaliser)
    row = P * c / rows.divisor[..., None]
    return (row * _others(row)).sum(-1)


def _clamped_nll(probability, log_probability, label):
    log = jnp.where(probability > LOG_FLOOR, log_probability, jnp.log(LOG_FLOOR))
    return -jnp.where(label >= 0, log, 0.0).sum()


def _gradients(hidden_MxBxD, blocks, gradient, embedding_VxD, bias_V):
    """Pass 5: from the gradient by each block's logits to hidden states, embedding and bias."""
    accumulate = jnp.promote_types(hidden_MxBxD.dtype, jnp.float32)

    def update(d_hidden, block):
        d_logits = gradient(block)
        low = d_logits.astype(hidden_MxBxD.dtype)
        d_hidden += jnp.einsum(
            "mbw,wd->mbd", low, block.embedding_KxWxD, preferred_element_type=accumulate
        )
        # D x W, not W x D: the product then needs no transposed copy of the large operand.
        d_embedding = jnp.einsum(
            "mbd,mbw->dw", hidden_MxBxD, low, preferred_element_type=accumulate
        )
        return d_hidden, (d_embedding, d_logits.sum((0, 1)))

    start = jnp.zeros(hidden_MxBxD.shape, accumulate)
    d_hidden, (d_embedding_KxDxW, d_bias) = jax.lax.scan(update, start, blocks)
    d_embedding = jnp.swapaxes(d_embedding_KxDxW, 1, 2).reshape(-1, embedding_VxD.shape[1])
    d_embedding = d_embedding[: len(bias_V)]
    return (
        jnp.swapaxes(d_hidden, 0, 1).astype(hidden_MxBxD.dtype),
        d_embedding.astype(embedding_VxD.dtype),
        d_bias.reshape(-1)[: len(bias_V)].astype(bias_V.dtype),
    )
