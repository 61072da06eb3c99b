"""States -> states of mean 0 and variance 1 at each position, scaled: layer norm."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class Norm(nn.Module):
    """Layer norm (Ba et al. 2016), with the parameters and values of `flax.linen.LayerNorm`.

    For the backward pass it keeps one array of its input's size, where Flax's keeps three. Moments
    have at least float32.

    Attributes:
      epsilon: added to the variance.
      dtype: of the result; None: the wider of its input's and the parameters'.
    """

    epsilon: float
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Norms the last axis, D: [..., D] -> [..., D]."""
        width = x.shape[-1:]
        scale_D = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias_D = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        return _norm(x, scale_D, bias_D, self.epsilon, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm(x, scale_D, bias_D, epsilon: float, dtype):
    return _forward(x, scale_D, bias_D, epsilon, dtype)[0]


def _forward(x, scale_D, bias_D, epsilon: float, dtype):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (wide - mean) * inverse
    out = (y * scale_D + bias_D).astype(dtype or jnp.promote_types(x.dtype, scale_D.dtype))
    return out, (y.astype(x.dtype), inverse, scale_D)


def _backward(epsilon: float, dtype, residuals, d_out):
    y, inverse, scale_D = residuals
    d_out, wide = d_out.astype(inverse.dtype), y.astype(inverse.dtype)
    rows = tuple(range(y.ndim - 1))
    d_scale, d_bias = (d_out * wide).sum(rows), d_out.sum(rows)
    d_y = d_out * scale_D
    along = (d_y * wide).mean(-1, keepdims=True)
    d_x = inverse * (d_y - d_y.mean(-1, keepdims=True) - wide * along)
    return d_x.astype(y.dtype), d_scale.astype(scale_D.dtype), d_bias.astype(scale_D.dtype)


_norm.defvjp(_forward, _backward)
