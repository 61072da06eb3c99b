"""Rank tokens -> hidden states: Geneformer's BERT encoder and the states its head reads."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.corpus.tokens import PAD
from scaling.pretrain.attention import attend

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Size and shape of the encoder; the fields are those of `config.model`."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    length: int
    activation: str
    dropout: float
    norm_epsilon: float

    def __post_init__(self):
        if min(self.layers, self.width, self.heads, self.feed_forward, self.length) < 1:
            raise ValueError(f"model sizes must be at least 1: {self}")
        if self.width % self.heads:
            raise ValueError(f"model.width {self.width} is no multiple of model.heads {self.heads}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"model.activation {self.activation!r}; one of {sorted(ACTIVATIONS)}")
        if not 0 <= self.dropout <= 0.999:
            raise ValueError(f"model.dropout is {self.dropout}; give a share from 0 to 0.999")


class Layer(nn.Module):
    """One post-layer-norm transformer layer (Vaswani et al. 2017; BERT)."""

    settings: ModelSettings

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        real_BxL: jax.Array,
        deterministic: bool,
        slots_BxM: jax.Array | None = None,
    ) -> jax.Array:
        """States [B, L, D], or those of some positions alone: [B, M, D]."""
        s = self.settings
        drop = nn.Dropout(s.dropout, deterministic=deterministic)
        attention = nn.MultiHeadDotProductAttention(
            num_heads=s.heads, dropout_rate=s.dropout, deterministic=deterministic,
            attention_fn=attend, name="attention",
        )
        x_BxMxD = x_BxLxD
        if slots_BxM is not None:
            x_BxMxD = jnp.take_along_axis(x_BxLxD, slots_BxM[..., None], axis=1)
        a_BxMxD = attention(x_BxMxD, x_BxLxD, mask=real_BxL[:, None, None, :])
        x_BxMxD = nn.LayerNorm(s.norm_epsilon, name="attention_norm")(x_BxMxD + drop(a_BxMxD))
        h_BxMxF = ACTIVATIONS[s.activation](nn.Dense(s.feed_forward, name="expand")(x_BxMxD))
        h_BxMxD = nn.Dense(s.width, name="contract")(h_BxMxF)
        return nn.LayerNorm(s.norm_epsilon, name="output_norm")(x_BxMxD + drop(h_BxMxD))


class RankEncoder(nn.Module):
    """BERT over a cell's genes in rank order, with the tied-embedding head's transform.

    The logits of the head are `transform(states) @ embedding.T + bias`; they are left to the
    objective, which never holds all of them at once.
    """

    settings: ModelSettings
    vocabulary: int

    def setup(self):
        s = self.settings
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (self.vocabulary, s.width))
        self.positions = self.param("positions", normal, (s.length, s.width))
        self.token_type = self.param("token_type", normal, (s.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        self.norm = nn.LayerNorm(s.norm_epsilon)
        self.drop = nn.Dropout(s.dropout)
        self.layers = [Layer(s, name=f"layer_{n}") for n in range(s.layers)]
        self.dense = nn.Dense(s.width, kernel_init=normal)
        self.head_norm = nn.LayerNorm(s.norm_epsilon)

    def encode(self, tokens_BxL: jax.Array, *, deterministic: bool = True) -> list[jax.Array]:
        """Hidden states [B, L, D] after the embedding and after each of the N layers."""
        states = self._below(tokens_BxL, deterministic)
        return [*states, self.layers[-1](states[-1], tokens_BxL != PAD, deterministic)]

    def _below(self, tokens_BxL: jax.Array, deterministic: bool) -> list[jax.Array]:
        """The states that the last layer reads, and all before them."""
        x_BxLxD = self.embedding[tokens_BxL] + self.positions[: tokens_BxL.shape[1]]
        x_BxLxD = self.drop(self.norm(x_BxLxD + self.token_type), deterministic=deterministic)
        states = [x_BxLxD]
        for layer in self.layers[:-1]:
            states.append(layer(states[-1], tokens_BxL != PAD, deterministic))
        return states

    def __call__(
        self, tokens_BxL: jax.Array, slots_BxM: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        """States [B, M, D] that the head multiplies with the embedding, at the given positions.

        The last layer computes those positions alone.
        """
        below_BxLxD = self._below(tokens_BxL, deterministic)[-1]
        x_BxMxD = self.layers[-1](below_BxLxD, tokens_BxL != PAD, deterministic, slots_BxM)
        x_BxMxD = ACTIVATIONS[self.settings.activation](self.dense(x_BxMxD))
        return self.head_norm(x_BxMxD)


def count_parameters(params) -> dict[str, int]:
    """Numbers of parameters: in all, and of the N layers alone.

    The second is what Geneformer V1's 3.16M "outside the embedding" counts: neither the embeddings
    of genes and positions nor the norms and the dense layer around the stack.
    """
    layers = [params[name] for name in params if name.startswith("layer_")]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "non_embedding_parameters": sum(leaf.size for leaf in jax.tree.leaves(layers)),
    }
