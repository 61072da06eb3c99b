"""Value beside each gene of a cell -> what its embedding gets in place of that of its rank."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.corpus.encodings import BINS

MIXED = 100  # vectors that scFoundation's projection mixes
LEAK = 0.1  # of its rectifier


class Expression(nn.Module):
    """Embedding of a gene's value, in one of the encodings that have values.

    "bins": a learned vector for each of 51 bins (scGPT). "projection": weights over 100 learned
    vectors, softmax(W2 r + r) with r = leaky ReLU(W1 value) (scFoundation's automatic
    discretisation). "counts": the value times a learned vector.

    Attributes:
      encoding: see `encodings.arrange`.
      width: D.
    """

    encoding: str
    width: int

    @nn.compact
    def __call__(self, values_BxL: jax.Array) -> jax.Array:
        """Values -> vectors, float [B, L, D]."""
        normal = nn.initializers.normal(0.02)
        if self.encoding == "bins":
            table_KxD = self.param("bins", normal, (BINS, self.width))
            return table_KxD[values_BxL.astype(jnp.int32)]
        if self.encoding == "counts":
            return values_BxL[..., None] * self.param("direction", normal, (self.width,))
        # None is named "kernel": their rate depends on no width, see `optimizer`.
        unit, zeros = nn.initializers.normal(1.0), nn.initializers.zeros
        lecun = nn.initializers.lecun_normal()
        first_K, first_bias_K = (self.param(n, unit, (MIXED,)) for n in ("first", "first_bias"))
        second_KxK = self.param("second", lecun, (MIXED, MIXED))
        second_bias_K = self.param("second_bias", zeros, (MIXED,))
        table_KxD = self.param("mixed", normal, (MIXED, self.width))
        r_BxLxK = nn.leaky_relu(values_BxL[..., None] * first_K + first_bias_K, LEAK)
        return jax.nn.softmax(r_BxLxK @ second_KxK + second_bias_K + r_BxLxK) @ table_KxD
