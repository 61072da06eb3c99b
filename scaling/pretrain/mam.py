"""Latents that attend over a cell -> the positions they choose to mask, and what they add (MAM)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scaling.corpus.tokens import MASK
from scaling.pretrain.masking import MaskedCells, MaskingSettings

PENALTY = 1e-5  # of the mean square of what the latents read
SUBSET = 2  # one latent of so many, drawn anew for each cell, chooses what is masked


class Latents(nn.Module):
    """Cross-attention of trainable latents to a cell's tokens (Naziri et al. 2026, PMLR 333:295).

    Attributes:
      count: of latents, Z.
      heads: H.
      width: D.
    """

    count: int
    heads: int
    width: int

    def setup(self):
        shape = (self.heads, self.width // self.heads)
        self.latents = self.param("latents", nn.initializers.normal(0.02), (self.count, self.width))
        self.query, self.key, self.value = (
            nn.DenseGeneral(shape, name=name) for name in ("query", "key", "value")
        )
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1))

    def attention(self, x_BxLxD: jax.Array, real_BxL: jax.Array) -> jax.Array:
        """Weights of each head and latent over the tokens: float32 [B, H, Z, L], sums 1."""
        q_ZxHxK, k_BxLxHxK = self.query(self.latents), self.key(x_BxLxD)
        logits_BxHxZxL = jnp.einsum("zhk,blhk->bhzl", q_ZxHxK, k_BxLxHxK) / q_ZxHxK.shape[-1] ** 0.5
        lowest = jnp.finfo(logits_BxHxZxL.dtype).min
        masked = jnp.where(real_BxL[:, None, None, :], logits_BxHxZxL, lowest)
        return jax.nn.softmax(masked.astype(jnp.float32))

    def __call__(self, x_BxLxD: jax.Array, real_BxL: jax.Array) -> jax.Array:
        """What each latent reads of a cell: [B, Z, D]."""
        weights_BxHxZxL = self.attention(x_BxLxD, real_BxL).astype(x_BxLxD.dtype)
        read_BxZxHxK = jnp.einsum("bhzl,blhk->bzhk", weights_BxHxZxL, self.value(x_BxLxD))
        return self.out(read_BxZxHxK)


def mask(
    cells: MaskedCells, weights_BxHxZxL: jax.Array, vocabulary: int, settings: MaskingSettings
) -> MaskedCells:
    """Masks as many genes of each cell as `masking.rate` says, where its latents attend.

    The weights of a half of the latents, drawn anew for each cell, are added up over those and the
    heads; from this distribution positions are drawn without replacement (by the largest of
    log weight + Gumbel noise), and treated in BERT's way. No gradient passes the draw. What is
    drawn is a function of the masking seed, the epoch, the cell and the weights.

    Args:
      cells: unmasked, with `later`.
      weights_BxHxZxL: see `Latents.attention`.
      vocabulary: V.
      settings: of masking.
    """
    slots = cells.slots_BxM.shape[1]
    weights_BxHxZxL = jax.lax.stop_gradient(weights_BxHxZxL)

    def of_cell(tokens_L, later, weights_HxZxL):
        draw, first, free_L = later
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), draw), 4)
        subset, chosen, treated, random = keys
        latents = weights_HxZxL.shape[1]
        some = jax.random.permutation(subset, latents)[: max(1, latents // SUBSET)]
        weight_L = jnp.where(free_L, weights_HxZxL[:, some].sum((0, 1)), 0.0)
        score_L = jnp.log(weight_L) + jax.random.gumbel(chosen, weight_L.shape)
        wanted = jnp.round(settings.rate * free_L.sum()).astype(jnp.int32)
        score_M, place_M = jax.lax.top_k(score_L, slots)
        taken_M = (jnp.arange(slots) < wanted) & (score_M > -jnp.inf)
        place_M = jnp.sort(jnp.where(taken_M, place_M, len(tokens_L)))
        taken_M = place_M < len(tokens_L)
        slot_M = jnp.where(taken_M, place_M, 0)
        label_M = jnp.where(taken_M, tokens_L[slot_M], -1)
        drawn_M = jax.random.uniform(treated, (slots,))
        hidden_M = taken_M & (drawn_M < settings.mask_share)
        other_M = drawn_M < settings.mask_share + settings.random_share
        gene_M = jax.random.randint(random, (slots,), first, vocabulary)
        seen_M = jnp.where(hidden_M, MASK, jnp.where(other_M, gene_M, label_M))
        inputs_L = tokens_L.at[place_M].set(seen_M.astype(jnp.int32), mode="drop")
        return inputs_L, slot_M.astype(jnp.int32), label_M.astype(jnp.int32), hidden_M

    of_cells = cells.inputs_BxL, cells.later, weights_BxHxZxL
    masked = jax.vmap(of_cell)(*of_cells)
    beside = {"values_BxL": cells.values_BxL, "fits": cells.fits}
    return MaskedCells(*masked, cells.surplus_B, **beside)
