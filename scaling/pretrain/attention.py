"""Queries, keys and values -> attention, some queries at a time; scores are never kept."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kernels.cab import api
from scaling.pretrain import sharding

QUERIES = 512  # at a time
# Scores at a time on CPU, of one or several heads: they stay near the core, and an operation has
# enough to do for all cores. Elsewhere all cells and heads are computed at once.
SCORES = 2**20


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
    rate = 0.0 if deterministic else dropout_rate
    local = functools.partial(_attend, rate=rate)
    arrays = query, key, value, mask, dropout_rng if rate else None
    return sharding.over_cells_and_heads(local, *arrays)


def _attend(query, key, value, mask, rng, rate: float):
    """`attend` of the cells and heads of one device."""
    (batch, length, heads, width), keys = query.shape, key.shape[1]
    rows = -(-length // -(-length // QUERIES))  # blocks of one size, so that few rows are filled up
    blocks = -(-length // rows)
    padded = jnp.pad(query * width**-0.5, ((0, 0), (0, blocks * rows - length), (0, 0), (0, 0)))
    query_GxKxRxE = _apart(padded).reshape(-1, blocks, rows, width)
    mask_GxL = jnp.repeat(mask.reshape(batch, keys), heads, axis=0)
    kept_KxRxL = None
    if rate:
        kept_KxRxL = jax.lax.map(
            lambda block: _kept(jax.random.fold_in(rng, block), rate, (rows, keys)),
            jnp.arange(blocks),
        )
    out = _blocks(query_GxKxRxE, _apart(key), _apart(value), mask_GxL, kept_KxRxL, rate)
    out = out.reshape(batch, heads, -1, out.shape[-1])[:, :, :length]
    return jnp.swapaxes(out, 1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _blocks(query_GxKxRxE, key_GxLxE, value_GxLxE, mask_GxL, kept_KxRxL, rate: float):
    return _forward(query_GxKxRxE, key_GxLxE, value_GxLxE, mask_GxL, kept_KxRxL, rate)[0]


def _forward(query_GxKxRxE, key_GxLxE, value_GxLxE, mask_GxL, kept_KxRxL, rate: float):
    def of_head(query_KxRxE, key_LxE, value_LxE, mask_L):
        read_L, key_LxE, value_LxE = _read(mask_L, key_LxE, value_LxE)

        def block(args):
            query_RxE, kept_RxL = args
            scores = _product("re,le->rl", query_RxE, key_LxE)
            peak = scores.max(-1, keepdims=True)
            weights = jnp.exp(scores - peak)
            total = jnp.dot(weights, read_L.astype(weights.dtype), precision="highest")[:, None]
            if rate:
                weights, total = jnp.where(kept_RxL, weights, 0.0), total * (1 - rate)
            return _product("rl,le->re", weights, value_LxE) / total, peak, total

        return jax.lax.map(block, (query_KxRxE, kept_KxRxL))

    arrays = query_GxKxRxE, key_GxLxE, value_GxLxE, mask_GxL
    results = _over_heads(of_head, *arrays)
    return results[0].astype(query_GxKxRxE.dtype), (*arrays, kept_KxRxL, *results)


def _backward(rate: float, residuals, d_out_GxKxRxE):
    *arrays, kept_KxRxL, out, peak, total = residuals
    dtype = arrays[0].dtype
    d_out = d_out_GxKxRxE / total
    along = (d_out * out).sum(-1, keepdims=True) * (1 - rate)
    turned = functools.partial(jnp.swapaxes, axis1=-1, axis2=-2)

    def of_head(query_KxRxE, key_LxE, value_LxE, mask_L, d_out, along, peak):
        read_L, key_LxE, value_LxE = _read(mask_L, key_LxE, value_LxE)

        def block(carry, args):
            d_key_ExL, d_value_ExL = carry
            query_RxE, query_ExR, d_out_RxE, d_out_ExR, along, peak, kept_RxL = args
            weights = jnp.exp(_product("re,le->rl", query_RxE, key_LxE) - peak)
            d_weights = _product("re,le->rl", d_out_RxE, value_LxE)
            kept_weights = jnp.where(kept_RxL, weights, 0.0) if rate else weights
            d_scores = jnp.where(read_L, kept_weights * d_weights - weights * along, 0.0)
            # E x R and E x L: both operands are then read as they lie, in a third of the time.
            d_value_ExL += _product("er,rl->el", d_out_ExR, kept_weights)
            d_key_ExL += _product("er,rl->el", query_ExR, d_scores)
            return (d_key_ExL, d_value_ExL), _product("rl,le->re", d_scores, key_LxE)

        zero = jnp.zeros_like(turned(key_LxE), out.dtype)
        of_blocks = query_KxRxE, turned(query_KxRxE), d_out, turned(d_out), along, peak, kept_KxRxL
        (d_key, d_value), d_query = jax.lax.scan(block, (zero, zero), of_blocks)
        some_key = mask_L.any()  # without one, all scores are a constant
        d_query, d_key = jnp.where(some_key, d_query, 0), jnp.where(some_key, turned(d_key), 0)
        d_value = jnp.where(read_L[:, None], turned(d_value), 0)
        return d_query.astype(dtype), d_key.astype(dtype), d_value.astype(dtype)

    return *_over_heads(of_head, *arrays, d_out, along, peak), None, None


_blocks.defvjp(_forward, _backward)


def _over_heads(of_head: Callable, query_GxKxRxE, key_GxLxE, *arrays):
    """A function of each head of each cell, of as many at a time as the platform likes."""
    heads, _, rows, _ = query_GxKxRxE.shape
    at_once = heads
    if api.platform() == "cpu":
        at_once = max(1, SCORES // (rows * key_GxLxE.shape[1]))
    arrays = query_GxKxRxE, key_GxLxE, *arrays
    if at_once >= heads:
        return jax.vmap(of_head)(*arrays)
    return jax.lax.map(lambda args: of_head(*args), arrays, batch_size=at_once)


def _apart(x_BxLxHxE: jax.Array) -> jax.Array:
    """G = B x H heads of cells, each L x E."""
    return jnp.swapaxes(x_BxLxHxE, 1, 2).reshape(-1, x_BxLxHxE.shape[1], x_BxLxHxE.shape[3])


def _read(mask_L, key_LxE, value_LxE):
    """Which keys are read, and keys and values with which no score needs a mask.

    Of a key that is not read, one that is takes the place, so that no row's largest score is
    another; its value is 0. Where the mask has none, all are read, and weigh the same.
    """
    one_E = key_LxE[jnp.argmax(mask_L)]
    read_L = mask_L | ~mask_L.any()
    value_LxE = jnp.where(read_L[:, None], value_LxE, 0)
    return read_L, jnp.where(mask_L[:, None], key_LxE, one_E), value_LxE


def _product(sum_of: str, left, right):
    """A product in the narrower of both types, added up in float32 or wider."""
    dtype = min(left.dtype, right.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        sum_of, left.astype(dtype), right.astype(dtype),
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


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
