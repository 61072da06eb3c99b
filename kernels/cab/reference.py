"""Hidden states at masked slots -> losses, literally: defines the values and the gradients."""

import jax.numpy as jnp

LOG_FLOOR = 1e-18  # of the logarithm, and of the sum that normalises Q
NORM_FLOOR = 1e-12  # of a row's length in the cosine


def cab(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity):
    """See `api.cab_loss`; builds B x M x V arrays. Returns (cross entropy, pairs, top P, top Q)."""
    real_BxMx1 = (labels_BxM >= 0)[..., None]
    P_BxMxV, rest_BxMxV = _softmax(hidden_BxMxD, embedding_VxD, bias_V)
    P_BxMxV = jnp.where(real_BxMx1, P_BxMxV, 0.0)
    survives_BxMxV = jnp.cumprod(jnp.where(real_BxMx1, rest_BxMxV, 1.0), axis=1)
    before_BxMxV = jnp.roll(survives_BxMxV, 1, axis=1).at[:, 0].set(1.0)
    left_BxMxV = P_BxMxV * before_BxMxV * ~known_BxV[:, None]
    Q_BxMxV = left_BxMxV / jnp.maximum(left_BxMxV.sum(-1, keepdims=True), LOG_FLOOR)
    cross_entropy = _cross_entropy(left_BxMxV if variant == "recalibrated" else P_BxMxV, labels_BxM)
    pair_sum = jnp.zeros_like(cross_entropy)
    if similarity != "none":
        rows_BxMxV = Q_BxMxV
        if similarity == "cosine":
            square_BxM = (Q_BxMxV**2).sum(-1)
            # The inner where keeps sqrt'(0) = inf out of the gradient of empty rows.
            norm_BxM = jnp.sqrt(jnp.where(square_BxM > NORM_FLOOR**2, square_BxM, NORM_FLOOR**2))
            rows_BxMxV = Q_BxMxV / norm_BxM[..., None]
        rows_BxMxV = jnp.where(real_BxMx1, rows_BxMxV, 0.0)
        first_BxMxV = jnp.zeros_like(rows_BxMxV[:, :1])
        earlier_BxMxV = jnp.concatenate([first_BxMxV, jnp.cumsum(rows_BxMxV, axis=1)[:, :-1]], 1)
        pair_sum = (rows_BxMxV * earlier_BxMxV).sum()
    return cross_entropy, pair_sum, _top(P_BxMxV), _top(Q_BxMxV)


def masked_lm(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    """See `api.masked_lm_loss`. Returns (cross entropy, top P)."""
    P_BxMxV, _ = _softmax(hidden_BxMxD, embedding_VxD, bias_V)
    return _cross_entropy(P_BxMxV, labels_BxM), _top(P_BxMxV)


def _softmax(hidden_BxMxD, embedding_VxD, bias_V):
    """P and 1 - P; for the likeliest gene the latter from the others: 1 - P loses its digits."""
    accumulate = jnp.promote_types(hidden_BxMxD.dtype, jnp.float32)
    logits_BxMxV = jnp.einsum(
        "bmd,vd->bmv", hidden_BxMxD, embedding_VxD, preferred_element_type=accumulate
    )
    logits_BxMxV += bias_V.astype(accumulate)
    top_BxMx1 = _top(logits_BxMxV)[..., None]
    to_top_BxMxV = jnp.exp(logits_BxMxV - jnp.take_along_axis(logits_BxMxV, top_BxMx1, axis=-1))
    is_top_BxMxV = jnp.arange(len(bias_V)) == top_BxMx1
    others_BxMx1 = jnp.where(is_top_BxMxV, 0.0, to_top_BxMxV).sum(-1, keepdims=True)
    P_BxMxV = to_top_BxMxV / (1.0 + others_BxMx1)
    return P_BxMxV, jnp.where(is_top_BxMxV, others_BxMx1 / (1.0 + others_BxMx1), 1.0 - P_BxMxV)


def _cross_entropy(rows_BxMxV, labels_BxM):
    """Sum of -log max(row at the label / max(sum of the row, 1e-18), 1e-18)."""
    genes = jnp.arange(rows_BxMxV.shape[-1])
    is_label_BxMxV = labels_BxM[..., None] == genes
    true_BxM = jnp.where(is_label_BxMxV, rows_BxMxV, 0.0).sum(-1)
    others_BxM = jnp.where(is_label_BxMxV, 0.0, rows_BxMxV).sum(-1)
    total_BxM = true_BxM + others_BxM
    # Every divisor is at least 1e-18: its inverse's square must be finite in float32. A NaN stays.
    free_BxM = ~(true_BxM <= LOG_FLOOR * jnp.maximum(total_BxM, LOG_FLOOR))
    whole_BxM = ~(total_BxM <= LOG_FLOOR)
    divisor_BxM = jnp.where(whole_BxM, total_BxM, 1.0)
    share_BxM = jnp.where(free_BxM & whole_BxM, true_BxM / divisor_BxM, 1.0)
    # log(total / true), written so that it keeps its digits where true is nearly all.
    nll_BxM = jnp.log1p(others_BxM / divisor_BxM / share_BxM)
    below_BxM = jnp.log(LOG_FLOOR) - jnp.log(jnp.where(free_BxM, true_BxM, 1.0))
    nll_BxM = jnp.where(whole_BxM, nll_BxM, below_BxM)
    nll_BxM = jnp.where(free_BxM, nll_BxM, -jnp.log(LOG_FLOOR))
    return jnp.where(labels_BxM >= 0, nll_BxM, 0.0).sum()


def _top(values_BxMxV):
    return jnp.argmax(values_BxMxV, axis=-1).astype(jnp.int32)
