"""Cells -> hidden states: Geneformer's BERT encoder and the states its head reads."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.corpus.encodings import ENCODINGS
from scaling.corpus.tokens import PAD
from scaling.pretrain import mam
from scaling.pretrain.expression import Expression
from scaling.pretrain.fused_attention import attend
from scaling.pretrain.norm import Norm

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}  # None: that of weights, float64 in tests
ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),  # BERT's
    "gelu_tanh": nn.gelu,
    "silu": nn.silu,
}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Size and shape of the encoder; the fields are those of `config.model`.

    Attributes:
      dropout: of hidden states; a cell's draws do not depend on its padded length.
      attention_dropout: of attention weights, after the softmax. Its draws depend on the padded
        length, and no fused kernel has it.
      dtype: of states and products, "float32" or "bfloat16"; weights, the sums of products, the
        softmax and the norms' moments are float32 in both.
      remat: keep of each layer but its input, and compute it again on the way back.
      base_width: 0 is the standard parameterisation. A width at which a learning rate was found
        gives the maximal update parameterisation for Adam with tied embeddings, under which that
        rate holds for other widths (Yang et al. 2022, Tensor Programs V, Table 8): see `ratio`.
        Heads must stay as wide as they were there, and F / D the same.
      latents: of MAM, see `mam.Latents`; the mean of what they read of the cell that the encoder
        sees is added to its embeddings. 0: none.
      latents_learn: they learn from the loss too, through that sum; else, as in the reference, from
        the penalty alone.
      encoding: what tells of a gene's expression: "ranks", the embedding of its position, or an
        encoding of `encodings.arrange` with values, whose positions have no embedding.
    """

    layers: int
    width: int
    heads: int
    feed_forward: int
    length: int
    activation: str
    dropout: float
    norm_epsilon: float
    attention_dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False
    base_width: int = 0
    latents: int = 0
    latents_learn: bool = False
    encoding: str = "ranks"

    def __post_init__(self):
        if min(self.layers, self.width, self.heads, self.feed_forward, self.length) < 1:
            raise ValueError(f"model sizes must be at least 1: {self}")
        if self.width % self.heads:
            raise ValueError(f"model.width {self.width} is no multiple of model.heads {self.heads}")
        if not 0 < self.norm_epsilon < 1:
            raise ValueError(f"model.norm_epsilon is {self.norm_epsilon}; give one between 0 and 1")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"model.activation {self.activation!r}; one of {sorted(ACTIVATIONS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"model.dtype {self.dtype!r}; one of {sorted(DTYPES)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) <= 0.999:
                raise ValueError(
                    f"model.{name} is {getattr(self, name)}; give a share from 0 to 0.999"
                )
        if self.base_width < 0:
            raise ValueError(f"model.base_width is {self.base_width}; give a width, or 0 for none")
        if self.encoding not in ENCODINGS:
            raise ValueError(f"model.encoding {self.encoding!r}; one of {ENCODINGS}")
        if self.latents < 0:
            raise ValueError(f"model.latents is {self.latents}; give how many, or 0 for none")

    @property
    def ratio(self) -> float:
        """Base width / width: factor of the logits and of the hidden matrices' learning rate.

        It is also that of the head's initial variance; all other matrices start with 1 / fan-in,
        embeddings with one variance at every width.
        """
        return self.base_width / self.width if self.base_width else 1.0


class Dropout(nn.Module):
    """Dropout whose draws are each cell's own: they do not depend on how a batch is cut.

    Two draws share a word of 32 bits, so the rate is true to within 1 / 131,072.
    """

    rate: float

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, place_B: jax.Array | None) -> jax.Array:
        """Drops; a place of None, or a rate of 0, drops nothing."""
        least = round(self.rate * 65536)
        if place_B is None or not least:
            return x_BxLxD
        keys_B = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), place_B)
        batch, length, width = x_BxLxD.shape
        # Words of 16 bits would cost jax as much as these.
        draw = functools.partial(jax.random.bits, shape=(length, -(-width // 2)))
        halves = jax.lax.bitcast_convert_type(jax.vmap(draw)(keys_B), jnp.uint16)
        kept_BxLxD = halves.reshape(batch, length, -1)[..., :width] >= least
        return jnp.where(kept_BxLxD, x_BxLxD / (1 - self.rate), 0)


class Layer(nn.Module):
    """One post-layer-norm transformer layer (Vaswani et al. 2017; BERT)."""

    settings: ModelSettings
    attention: str  # its implementation, see `fused_attention.attend`

    @nn.compact
    def __call__(
        self,
        x_BxLxD: jax.Array,
        real_BxL: jax.Array,
        place_B: jax.Array | None,
        slots_BxM: jax.Array | None = None,
    ) -> jax.Array:
        """States [B, L, D], or those of some positions alone: [B, M, D]; see `RankEncoder`."""
        s = self.settings
        dtype = DTYPES[s.dtype]
        attention = nn.MultiHeadDotProductAttention(
            num_heads=s.heads, dropout_rate=s.attention_dropout, deterministic=place_B is None,
            attention_fn=functools.partial(attend, implementation=self.attention), dtype=dtype,
            name="attention",
        )
        norm = functools.partial(Norm, s.norm_epsilon, dtype)
        dense = functools.partial(nn.Dense, dtype=dtype)
        x_BxMxD = x_BxLxD
        if slots_BxM is not None:
            x_BxMxD = jnp.take_along_axis(x_BxLxD, slots_BxM[..., None], axis=1)
        a_BxMxD = attention(x_BxMxD, x_BxLxD, mask=real_BxL[:, None, None, :])
        a_BxMxD = Dropout(s.dropout, name="attention_drop")(a_BxMxD, place_B)
        x_BxMxD = norm(name="attention_norm")(x_BxMxD + a_BxMxD)
        h_BxMxF = ACTIVATIONS[s.activation](dense(s.feed_forward, name="expand")(x_BxMxD))
        h_BxMxD = dense(s.width, name="contract")(h_BxMxF)
        h_BxMxD = Dropout(s.dropout, name="output_drop")(h_BxMxD, place_B)
        return norm(name="output_norm")(x_BxMxD + h_BxMxD)


class RankEncoder(nn.Module):
    """BERT over a cell's genes, with the tied-embedding head's transform.

    Genes stand as the input encoding arranges them, in rank order by default. Values are those of
    `encodings.Cells`, None in the encoding "ranks".

    States that the last layer reads are sown as "below", for `supervision`. The logits of the head
    are `transform(states) @ embedding.T + bias`, their product multiplied
    by `settings.ratio`; they are left to the objective, which never holds all of them at once.
    """

    settings: ModelSettings
    vocabulary: int
    attention: str = "default"  # its implementation, see `fused_attention.attend`

    def setup(self):
        s = self.settings
        normal = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", normal, (self.vocabulary, s.width))
        if s.encoding == "ranks":
            self.positions = self.param("positions", normal, (s.length, s.width))
        else:
            self.expression = Expression(s.encoding, s.width)
        self.token_type = self.param("token_type", normal, (s.width,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))
        dtype = DTYPES[s.dtype]
        self.norm = Norm(s.norm_epsilon, dtype)
        self.drop = Dropout(s.dropout)
        layer = nn.remat(Layer) if s.remat else Layer
        self.layers = [layer(s, self.attention, name=f"layer_{n}") for n in range(s.layers)]
        of_head = nn.initializers.normal(0.02 * s.ratio**0.5)
        if s.latents:
            self.mam = mam.Latents(s.latents, s.heads, s.width)
        self.dense = nn.Dense(s.width, kernel_init=of_head, dtype=dtype)
        self.head_norm = Norm(s.norm_epsilon, dtype)

    def encode(
        self,
        tokens_BxL: jax.Array,
        place_B: jax.Array | None = None,
        values_BxL: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Hidden states [B, L, D] after the embedding and after each of the N layers.

        With a place of each cell, of which `__call__` tells, with dropout.
        """
        states = self._below(tokens_BxL, place_B, values_BxL)
        return [*states, self.layers[-1](states[-1], tokens_BxL != PAD, place_B)]

    def _below(
        self, tokens_BxL: jax.Array, place_B: jax.Array | None, values_BxL: jax.Array | None
    ) -> list[jax.Array]:
        """The states that the last layer reads, and all before them."""
        x_BxLxD = self._embedded(tokens_BxL, values_BxL)
        if self.settings.latents:
            read_BxZxD = self.mam(x_BxLxD, tokens_BxL != PAD)
            self.sow("mam", "square_B", jnp.square(read_BxZxD).mean((1, 2)))
            summary_BxD = read_BxZxD.mean(1)
            if not self.settings.latents_learn:
                summary_BxD = jax.lax.stop_gradient(summary_BxD)
            x_BxLxD += summary_BxD[:, None]
        states = [self.drop(x_BxLxD, place_B)]
        for layer in self.layers[:-1]:
            states.append(layer(states[-1], tokens_BxL != PAD, place_B))
        return states

    def _embedded(self, tokens_BxL: jax.Array, values_BxL: jax.Array | None) -> jax.Array:
        if (values_BxL is None) != (self.settings.encoding == "ranks"):
            raise ValueError(
                f"model.encoding is {self.settings.encoding!r}: 'ranks' reads no values of genes, "
                "and every other reads them; get cells from Corpus.inputs in the model's encoding"
            )
        if values_BxL is None:
            beside = self.positions[: tokens_BxL.shape[1]]
        else:
            beside = self.expression(values_BxL)
        return self.norm(self.embedding[tokens_BxL] + beside + self.token_type)

    def attention_of_latents(
        self, tokens_BxL: jax.Array, values_BxL: jax.Array | None = None
    ) -> jax.Array:
        """Weights of MAM's heads and latents over the tokens, float32 [B, H, Z, L]."""
        return self.mam.attention(self._embedded(tokens_BxL, values_BxL), tokens_BxL != PAD)

    def __call__(
        self,
        tokens_BxL: jax.Array,
        slots_BxM: jax.Array,
        place_B: jax.Array | None = None,
        values_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """States [B, M, D] that the head multiplies with the embedding, at the given positions.

        The last layer computes those positions alone.

        Args:
          tokens_BxL: int32 rank tokens, padded.
          slots_BxM: int32 positions.
          place_B: place of each cell in the global batch, from which its dropout is drawn with
            the rng "dropout"; None drops nothing.
          values_BxL: float32 beside the tokens, or None.

        Raises:
          ValueError: values in the encoding "ranks", or none in another.
        """
        below_BxLxD = self._below(tokens_BxL, place_B, values_BxL)[-1]
        self.sow("below", "states", below_BxLxD)
        x_BxMxD = self.layers[-1](below_BxLxD, tokens_BxL != PAD, place_B, slots_BxM)
        x_BxMxD = ACTIVATIONS[self.settings.activation](self.dense(x_BxMxD))
        return self.head_norm(x_BxMxD) * self.settings.ratio


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
