"""Queries, keys and values -> attention, some queries at a time; scores are never kept."""

import functools
import math

import jax
import jax.numpy as jnp

QUERIES = 256  # at a time: their scores stay near the core on CPU


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array,
    dropout_rng: jax.Array | None,
    dropout_rate: float,
    deterministic: bool,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al. 2017), an `attention_fn` of Flax.

    The backward pass computes the scores again (FlashAttention, Dao et al. 2022), so that memory
    grows with L and not with L^2; of dropout one byte per score is kept. As in Flax's own, a score
    that dropout takes is taken in all cells and heads of the batch. Scores and their softmax have
    at least float32.

    Args:
      query: [B, M, H, D / H].
      key, value: [B, L, H, D / H].
      mask: bool [B, 1, 1, L], keys to be read.
      dropout_rng: key of the dropout of attention weights; None where there is none.
      dropout_rate: share of them that is dropped.
      deterministic: no dropout.

    Returns:
      [B, M, H, D / H].
    """
    length, width = query.shape[1], query.shape[3]
    rate = 0.0 if deterministic else dropout_rate
    rows = -(-length // -(-length // QUERIES))  # blocks of one size, so that few rows are filled up
    query_KxBxHxRxE = _cut(query * width**-0.5, rows)
    key_BxHxLxE, value_BxHxLxE = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    arrays = query_KxBxHxRxE, key_BxHxLxE, value_BxHxLxE, mask
    return _join(_blocks(*arrays, dropout_rng if rate else None, rate))[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blocks(query_KxBxHxRxE, key_BxHxLxE, value_BxHxLxE, mask, rng, rate: float):
    return _forward(query_KxBxHxRxE, key_BxHxLxE, value_BxHxLxE, mask, rng, rate)[0]


def _forward(query_KxBxHxRxE, key_BxHxLxE, value_BxHxLxE, mask, rng, rate: float):
    def block(args):
        query_BxHxRxE, number = args
        scores = _scores(query_BxHxRxE, key_BxHxLxE, mask)
        peak = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - peak)
        total = weights.sum(-1, keepdims=True)
        kept_RxL = None
        if rate:
            kept_RxL = _kept(jax.random.fold_in(rng, number), rate, weights.shape[2:])
            weights, total = jnp.where(kept_RxL, weights, 0.0), total * (1 - rate)
        out = _product("bhrl,bhle->bhre", weights, value_BxHxLxE) / total
        return out, peak, total, kept_RxL

    results = jax.lax.map(block, (query_KxBxHxRxE, jnp.arange(len(query_KxBxHxRxE))))
    residuals = query_KxBxHxRxE, key_BxHxLxE, value_BxHxLxE, mask, *results
    return results[0].astype(query_KxBxHxRxE.dtype), residuals


def _backward(rate: float, residuals, d_out_KxBxHxRxE):
    query, key_BxHxLxE, value_BxHxLxE, mask, out, peak, total, kept_KxRxL = residuals
    d_out = d_out_KxBxHxRxE / total
    along = (d_out * out).sum(-1, keepdims=True) * (1 - rate)

    def block(carry, args):
        d_key_BxHxExL, d_value_BxHxExL = carry
        query_BxHxRxE, query_BxHxExR, d_out_BxHxRxE, d_out_BxHxExR, along, peak, kept_RxL = args
        weights = jnp.exp(_scores(query_BxHxRxE, key_BxHxLxE, mask) - peak)
        d_weights = _product("bhre,bhle->bhrl", d_out_BxHxRxE, value_BxHxLxE)
        kept_weights = weights
        if rate:
            kept_weights = jnp.where(kept_RxL, weights, 0.0)
        d_scores = kept_weights * d_weights - weights * along
        # E x R and E x L: both operands are then read as they lie, in a third of the time.
        d_value_BxHxExL += _product("bher,bhrl->bhel", d_out_BxHxExR, kept_weights)
        d_key_BxHxExL += _product("bher,bhrl->bhel", query_BxHxExR, d_scores)
        return (d_key_BxHxExL, d_value_BxHxExL), _product("bhrl,bhle->bhre", d_scores, key_BxHxLxE)

    turned = functools.partial(jnp.swapaxes, axis1=-1, axis2=-2)
    zero = jnp.zeros_like(jnp.swapaxes(key_BxHxLxE, 2, 3), out.dtype)
    (d_key, d_value), d_query = jax.lax.scan(
        block, (zero, zero), (query, turned(query), d_out, turned(d_out), along, peak, kept_KxRxL)
    )
    d_key, d_value = jnp.swapaxes(d_key, 2, 3), jnp.swapaxes(d_value, 2, 3)
    some_key = mask.any(-1, keepdims=True)  # without one, all scores are a constant
    d_query, d_key = jnp.where(some_key, d_query, 0), jnp.where(some_key, d_key, 0)
    dtype = query.dtype
    return d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype), None, None


_blocks.defvjp(_forward, _backward)


def _scores(query_BxHxRxE, key_BxHxLxE, mask):
    scores = _product("bhre,bhle->bhrl", query_BxHxRxE, key_BxHxLxE)
    return jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


def _product(sum_of: str, left, right):
    """A product in the narrower of both types, added up in float32 or wider."""
    dtype = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        sum_of, left.astype(dtype), right.astype(dtype),
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


def _cut(x_BxMxHxE, rows: int):
    """The K blocks of rows, each B x H x rows x E; the last is filled with zeros."""
    batch, length, heads, width = x_BxMxHxE.shape
    blocks = -(-length // rows)
    x = jnp.pad(x_BxMxHxE, ((0, 0), (0, blocks * rows - length), (0, 0), (0, 0)))
    return x.reshape(batch, blocks, rows, heads, width).transpose(1, 0, 3, 2, 4)


def _join(x_KxBxHxRxE):
    _, batch, heads, _, width = x_KxBxHxRxE.shape
    return x_KxBxHxRxE.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, width)


def _kept(rng: jax.Array, rate: float, shape: tuple[int, int]) -> jax.Array:
    """bool, each True with probability 1 - rate.

    Few are dropped, so the gaps between them are drawn: one draw per weight would take longer than
    its product. Of six standard deviations more than is expected, none is missing.
    """
    size = shape[0] * shape[1]
    most = size * rate + 6 * (size * rate * (1 - rate)) ** 0.5 + 1
    gaps = jax.random.geometric(rng, rate, (min(size, math.ceil(most)),), jnp.int32)
    kept = jnp.ones(size, bool).at[jnp.cumsum(gaps) - 1].set(False, mode="drop")
    return kept.reshape(shape)
