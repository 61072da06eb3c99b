"""Hidden states at masked slots -> losses and gradients, in four passes over the vocabulary.

No array of B x M x V ever exists: each pass computes the logits anew, some genes at a time, and
leaves numbers per slot. An implementation supplies the passes; what stands between them (sums over
a cut vocabulary, clamps, the custom gradient) is here, once. `slotwise` has the same sums in
another order. Everything is per cell, i a masked slot and v a gene; x_i(v) are logits, h hidden
states, e embedding:

softmax      t_i = argmax x_i, r_i = sum_{v != t_i} exp(x_i(v) - x_i(t_i)), so that
               P_i(v) = exp(x_i(v) - x_i(t_i)) / (1 + r_i)
               u_i(v) = 1 - P_i(v) elsewhere and r_i / (1 + r_i) at t_i: right to the last digit
               where P comes within 1e-7 of 1
assignment   q_i = P_i c_i with c_i = (1 - known) prod_{j<i} u_j; its sum at and beside the true
             gene, and the Gram matrix of the rows, which holds their lengths and their cosines
weights      w_i = q_i dL/dq_i and, by the chain of the c's, P_i dL/dP_i = w_i - s_i with
               s_i(v) = P_i(v) / u_i(v) sum_{j>i} w_j(v); the sum of s_i at t_i, and elsewhere
gradients    dL/dx_i = w_i - s_i - P_i sum_v (w_i - s_i), where sum_v w_i is known without summing
               and, at t_i, s_i (1 - P_i) is taken as P_i sum_{j>i} w_j
             dL/dh = dL/dx e, dL/de = (dL/dx)' h
"""

import functools
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab.reference import LOG_FLOOR, NORM_FLOOR

SMALLEST = 1e-30  # a q below it stands in rows whose sum and length are clamped
LEAST_REST = 1e-36  # of r where it is divided by: less leaves later rows nothing that counts


class Softmax(NamedTuple):
    """Of each slot, B x M: gene t, its logit, r, and the true gene's logit."""

    top: jax.Array
    peak: jax.Array
    rest: jax.Array
    true_logit: jax.Array


class Assigned(NamedTuple):
    """Of each slot, B x M: sums of q at and beside the true gene, the highest q and its gene.

    `gram_BxMxM` holds q_i . q_j / (best_i best_j), each best at least SMALLEST; None where no
    similarity was asked for.
    """

    true: jax.Array
    other: jax.Array
    best: jax.Array
    top: jax.Array
    gram_BxMxM: jax.Array | None


class Rows(NamedTuple):
    """What the passes need to know of each slot, all B x M; an empty slot has P = 0 and u = 1.

    P = exp(x - peak) * inverse; u = 1 - P, but left at gene `top`.
    w = at_label at the true gene, q * beside elsewhere, and beside the similarity's part
    weight * row * (others - along * row), row = q * scale (for the dot product without `* row`);
    sum_w is its sum over all genes.
    The plain cross-entropy adds on_p * (P - [true gene]) to the gradient by the logits.
    """

    label: jax.Array
    top: jax.Array
    peak: jax.Array
    inverse: jax.Array
    left: jax.Array
    at_label: jax.Array
    beside: jax.Array
    scale: jax.Array
    weight: jax.Array
    along: jax.Array
    sum_w: jax.Array
    on_p: jax.Array


class Cut(NamedTuple):
    """Static: which passes, what they compute, and the mesh axis that cuts the vocabulary."""

    passes: ModuleType
    variant: str
    similarity: str
    axis: str | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def masked_lm(cut: Cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    """See `api.masked_lm_loss`. Returns (cross entropy, top P)."""
    return _masked_lm_forward(cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)[0]


def _masked_lm_forward(cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM
    softmax = _softmax(cut, *arrays)
    return (_nll_of_p(softmax, labels_BxM)[0], softmax.top), (arrays, softmax)


def _masked_lm_backward(cut, saved, cotangents):
    arrays, softmax = saved
    rows = rows_of(softmax, arrays[3])
    free = _nll_of_p(softmax, arrays[3])[1]
    rows = rows._replace(on_p=jnp.where(free, cotangents[0], 0.0))
    grads = cut.passes.gradients(*_local(cut, arrays), None, rows, None, None, similarity="none")
    return *reduced(cut, grads, arrays), None


masked_lm.defvjp(_masked_lm_forward, _masked_lm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def cab(cut: Cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV):
    """See `api.cab_loss`. Returns (cross entropy, pairs, top P, top Q)."""
    return _cab_forward(cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV)[0]


def _cab_forward(cut, hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV):
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM
    softmax = _softmax(cut, *arrays)
    rows = rows_of(softmax, labels_BxM)
    wanted = cut.similarity != "none"
    sums = cut.passes.assignment(*_local(cut, arrays), known_BxV, rows, gram=wanted)
    sums = _sums_over_vocabulary(cut, sums)
    loss, rows, total = cross_entropy(cut.variant, rows, softmax, sums.true, sums.other)
    alike = sum_of_similarity = jnp.zeros_like(total)
    if wanted:
        best, cosine = jnp.maximum(sums.best, SMALLEST), cut.similarity == "cosine"
        square = jnp.diagonal(sums.gram_BxMxM, axis1=1, axis2=2) if cosine else None
        divided_by, free = divisor(total, best, square)
        real = labels_BxM >= 0
        scale = jnp.where(real, 1.0 / divided_by, 0.0)
        others = 1.0 - jnp.eye(labels_BxM.shape[1], dtype=total.dtype)
        ratio = jnp.where(real, best / divided_by, 0.0)
        alike = ratio * jnp.einsum("bij,bj->bi", sums.gram_BxMxM * others, ratio)
        rows = rows._replace(scale=scale, along=jnp.where(free, alike, 0.0))
        sum_of_similarity = jnp.where(free, 0.0, alike)
    outputs = loss, alike.sum() / 2, softmax.top, sums.top
    return outputs, (arrays, known_BxV, rows, sum_of_similarity)


def _cab_backward(cut, saved, cotangents):
    arrays, known_BxV, rows, sum_of_similarity = saved
    rows = with_cotangents(rows, *cotangents[:2])
    rows = rows._replace(sum_w=rows.sum_w + sum_of_similarity * cotangents[1])
    local = *_local(cut, arrays), known_BxV, rows
    at_top, elsewhere = cut.passes.weights(*local, similarity=cut.similarity)
    if cut.axis is not None:
        at_top, elsewhere = jax.lax.psum((at_top, elsewhere), cut.axis)
    grads = cut.passes.gradients(*local, at_top, elsewhere, similarity=cut.similarity)
    return *reduced(cut, grads, arrays), None, None


cab.defvjp(_cab_forward, _cab_backward)


def cross_entropy(variant: str, rows: Rows, softmax: Softmax, true, other):
    """Of slots, by the sums of q at and beside the true gene.

    Returns:
      (the sum of the cross-entropy, the rows with what it adds to w, the clamped sum of q)
    """
    real, total = rows.label >= 0, true + other
    total_free = ~(total <= LOG_FLOOR)  # so written that a NaN stays one
    total = jnp.where(total_free, total, LOG_FLOOR)
    loss, free = _nll_of_p(softmax, rows.label)
    if variant == "recalibrated":
        # -log(true / total), without the difference of two numbers near 1 where Q comes near 1.
        log_total_over_true = jnp.where(
            total_free, jnp.log1p(other / _safe(true)), jnp.log(total / _safe(true))
        )
        free = real & ~(true <= LOG_FLOOR * total)
        loss = _clamped(log_total_over_true, free, rows.label)
        rows = rows._replace(
            at_label=jnp.where(free, -jnp.where(total_free, other / total, 1.0), 0.0),
            beside=jnp.where(free & total_free, 1.0 / total, 0.0),
            sum_w=jnp.where(free & ~total_free, -1.0, 0.0),
        )
    else:
        rows = rows._replace(on_p=free.astype(total.dtype))
    return loss, rows, total


def divisor(total, unit, square):
    """What q is divided by for the similarity, and where no clamp acts.

    Args:
      total: clamped sum of q.
      unit: of which q was measured in `square`.
      square: sum of (q / unit)^2 for the cosine; None for the dot product.
    """
    if square is None:
        return total, ~(total <= LOG_FLOOR)
    # The inner where keeps sqrt'(0) = inf out of second derivatives at empty slots.
    norm = unit * jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))
    free = ~(norm <= NORM_FLOOR * total)
    return jnp.where(free, norm, NORM_FLOOR * total), free


def with_cotangents(rows: Rows, on_cross_entropy, on_similarity) -> Rows:
    """What the sums' cotangents make of the rows' share in w."""
    return rows._replace(
        at_label=rows.at_label * on_cross_entropy,
        beside=rows.beside * on_cross_entropy,
        on_p=rows.on_p * on_cross_entropy,
        sum_w=rows.sum_w * on_cross_entropy,
        weight=jnp.where(rows.label >= 0, on_similarity, 0.0),
    )


def axes_of(*arrays) -> frozenset[str]:
    """The mesh axes of an enclosing `shard_map` that any of the arrays (or None) varies over."""
    given = [a for a in arrays if a is not None]
    return frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in given))


def vary(array, axes: frozenset[str]):
    """The array, typed as varying over these mesh axes too."""
    missing = tuple(sorted(axes - axes_of(array)))
    return jax.lax.pcast(array, missing, to="varying") if missing else array


def _local(cut: Cut, arrays):
    """The arrays and the first gene of this device's part of the vocabulary."""
    first = 0 if cut.axis is None else jax.lax.axis_index(cut.axis) * len(arrays[1])
    return *arrays, first


def _softmax(cut: Cut, *arrays) -> Softmax:
    part = cut.passes.softmax(*_local(cut, arrays))
    if cut.axis is None:
        return part
    peak = jax.lax.pmax(part.peak, cut.axis)
    top = jax.lax.pmin(jnp.where(part.peak == peak, part.top, jnp.iinfo(jnp.int32).max), cut.axis)
    rest = (part.rest + (part.top != top)) * jnp.exp(part.peak - peak)
    return Softmax(top, peak, *jax.lax.psum((rest, part.true_logit), cut.axis))


def _sums_over_vocabulary(cut: Cut, part: Assigned) -> Assigned:
    if cut.axis is None:
        return part
    best = jax.lax.pmax(part.best, cut.axis)
    top = jax.lax.pmin(jnp.where(part.best == best, part.top, jnp.iinfo(jnp.int32).max), cut.axis)
    gram = part.gram_BxMxM
    if gram is not None:
        ratio = jnp.maximum(part.best, SMALLEST) / jnp.maximum(best, SMALLEST)
        gram = jax.lax.psum(gram * ratio[:, :, None] * ratio[:, None], cut.axis)
    return Assigned(*jax.lax.psum((part.true, part.other), cut.axis), best, top, gram)


def rows_of(softmax: Softmax, labels_BxM) -> Rows:
    real, rest = labels_BxM >= 0, softmax.rest
    zero = jnp.zeros_like(rest)
    return Rows(
        label=labels_BxM,
        top=softmax.top,
        peak=softmax.peak,
        inverse=jnp.where(real, 1.0 / (1.0 + rest), 0.0),
        left=jnp.where(real, jnp.maximum(rest, LEAST_REST) / (1.0 + rest), 1.0),
        **dict.fromkeys(("at_label", "beside", "scale", "weight", "along", "sum_w", "on_p"), zero),
    )


def _nll_of_p(softmax: Softmax, labels_BxM):
    """Sum of -log P of the true genes, and where its clamp does not act."""
    nll = softmax.peak - softmax.true_logit + jnp.log1p(softmax.rest)
    free = (labels_BxM >= 0) & ~(nll >= -jnp.log(LOG_FLOOR))
    return _clamped(nll, free, labels_BxM), free


def _clamped(nll, free, labels_BxM):
    return jnp.where(labels_BxM >= 0, jnp.where(free, nll, -jnp.log(LOG_FLOOR)), 0.0).sum()


def _safe(true):
    return jnp.where(true <= 0, 1.0, true)


def reduced(cut: Cut, grads, arrays):
    """Gradients in their arrays' types; that by the hidden states summed over the vocabulary."""
    d_hidden, d_embedding, d_bias = grads
    if cut.axis is not None:
        d_hidden = jax.lax.psum(d_hidden, cut.axis)
    return tuple(
        grad.astype(array.dtype)
        for grad, array in zip((d_hidden, d_embedding, d_bias), arrays, strict=False)
    )
