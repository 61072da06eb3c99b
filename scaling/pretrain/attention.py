"""Queries, keys and values -> attention, some queries at a time; scores are never kept."""

import jax
import jax.numpy as jnp

QUERIES = 128  # at a time: their scores stay near the core on CPU


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

    The backward pass computes the scores again, so that memory grows with L and not with L^2. As
    in Flax's own, a score that dropout takes is taken in all cells and heads of the batch.

    Args:
      query, key, value: [B, L, H, D / H].
      mask: bool [B, 1, 1, L], keys to be read.
      dropout_rng: key of the dropout of attention weights; None where there is none.
      dropout_rate: share of them that is dropped.
      deterministic: no dropout.

    Returns:
      [B, L, H, D / H].
    """
    batch, length, heads, width = query.shape
    rows = min(QUERIES, length)
    blocks = -(-length // rows)
    query = jnp.pad(query * width**-0.5, ((0, 0), (0, blocks * rows - length), (0, 0), (0, 0)))
    query_KxBxHxRxE = query.reshape(batch, blocks, rows, heads, width).transpose(1, 0, 3, 2, 4)
    key_BxHxLxE, value_BxHxLxE = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    @jax.checkpoint
    def block(args):
        query_BxHxRxE, number = args
        scores = jnp.einsum("bhre,bhle->bhrl", query_BxHxRxE, key_BxHxLxE)
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        if not deterministic and dropout_rate > 0:
            kept = _kept(jax.random.fold_in(dropout_rng, number), dropout_rate, rows, length)
            weights = weights * (kept / (1 - dropout_rate))
        return jnp.einsum("bhrl,bhle->bhre", weights, value_BxHxLxE) / total

    out_KxBxHxRxE = jax.lax.map(block, (query_KxBxHxRxE, jnp.arange(blocks)))
    out = out_KxBxHxRxE.transpose(1, 0, 3, 2, 4).reshape(batch, -1, *value.shape[2:])
    return out[:, :length]


def _kept(rng: jax.Array, rate: float, rows: int, length: int) -> jax.Array:
    """bool [rows, length], True with probability 1 - rate to within 1 / 131,072.

    Drawing is what dropout costs: a word decides twice, and XLA's own generator draws it, which
    is quicker than jax's default.
    """
    words_of_key = jnp.tile(jax.random.key_data(rng).reshape(-1), 2)[:4]
    rng = jax.random.wrap_key_data(words_of_key, impl="rbg")
    words = jax.random.bits(rng, (rows, -(-length // 2)), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(rows, -1)
    return halves[:, :length] >= round(rate * 65536)
