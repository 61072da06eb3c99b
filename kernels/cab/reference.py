"""Hidden states at masked slots -> losses, literally: defines the values and the gradients."""

import jax
import jax.numpy as jnp

LOG_FLOOR = 1e-18  # of the logarithm, and of the sum that normalises Q
NORM_FLOOR = 1e-12  # of a row's length in the cosine


def cab(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV, variant, similarity):
    """See `api.cab_loss`; builds B x M x V arrays. Returns (cross entropy, pairs, top P, top Q)."""
    real_BxM = labels_BxM >= 0
    P_BxMxV = jnp.where(real_BxM[..., None], _softmax(hidden_BxMxD, embedding_VxD, bias_V), 0.0)
    survives_BxMxV = jnp.cumprod(1.0 - P_BxMxV, axis=1)
    before_BxMxV = jnp.roll(survives_BxMxV, 1, axis=1).at[:, 0].set(1.0)
    blocked_BxMxV = P_BxMxV * before_BxMxV * ~known_BxV[:, None]
    Q_BxMxV = blocked_BxMxV / jnp.maximum(blocked_BxMxV.sum(-1, keepdims=True), LOG_FLOOR)
    cross_entropy = _cross_entropy(Q_BxMxV if variant == "recalibrated" else P_BxMxV, labels_BxM)
    pair_sum = jnp.zeros_like(cross_entropy)
    if similarity != "none":
        rows_BxMxV = Q_BxMxV
        if similarity == "cosine":
            square_BxM = (Q_BxMxV**2).sum(-1)
            # The inner where keeps sqrt'(0) = inf out of the gradient of empty rows.
            norm_BxM = jnp.sqrt(jnp.where(square_BxM > NORM_FLOOR**2, square_BxM, NORM_FLOOR**2))
            rows_BxMxV = Q_BxMxV / norm_BxM[..., None]
        rows_BxMxV = jnp.where(real_BxM[..., None], rows_BxMxV, 0.0)
        earlier_BxMxV = jnp.cumsum(rows_BxMxV, axis=1) - rows_BxMxV
        pair_sum = (rows_BxMxV * earlier_BxMxV).sum()
    return cross_entropy, pair_sum, _top(P_BxMxV), _top(Q_BxMxV)


def masked_lm(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    """See `api.masked_lm_loss`. Returns (cross entropy, top P)."""
    P_BxMxV = _softmax(hidden_BxMxD, embedding_VxD, bias_V)
    return _cross_entropy(P_BxMxV, labels_BxM), _top(P_BxMxV)


def _softmax(hidden_BxMxD, embedding_VxD, bias_V):
    accumulate = jnp.promote_types(hidden_BxMxD.dtype, jnp.float32)
    logits_BxMxV = jnp.einsum(
        "bmd,vd->bmv", hidden_BxMxD, embedding_VxD, preferred_element_type=accumulate
    )
    return jax.nn.softmax(logits_BxMxV + bias_V.astype(accumulate), axis=-1)


def _cross_entropy(probability_BxMxV, labels_BxM):
    true_BxM = jnp.take_along_axis(
        probability_BxMxV, jnp.maximum(labels_BxM, 0)[..., None], axis=-1
    )[..., 0]
    free_BxM = true_BxM > LOG_FLOOR
    log_BxM = jnp.log(jnp.where(free_BxM, true_BxM, LOG_FLOOR))
    return -jnp.where(labels_BxM >= 0, log_BxM, 0.0).sum()


def _top(probability_BxMxV):
    return jnp.argmax(probability_BxMxV, axis=-1).astype(jnp.int32)
