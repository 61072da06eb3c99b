"""Hidden states at masked slots -> loss sums and predicted genes; picks the implementation."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab import blocked, passes, reference

IMPLEMENTATIONS = {"reference": reference, "blocked": blocked}

Variant = Literal["recalibrated", "plain"]
Similarity = Literal["cosine", "dot", "none"]


class CabLoss(NamedTuple):
    """Sums over the batch, unweighted.

    Attributes:
      cross_entropy: sum over masked slots of -log max(., 1e-18) of the true gene, nats.
      similarity: sum over pairs i < j of masked slots of a cell of the similarity of Q_i and Q_j;
        0 where it was not asked for.
      positions: number of masked slots, float.
      pairs: number of pairs of masked slots of one cell, float.
      top_p_BxM: int32, gene with the highest P at each slot (lowest id among equals).
      top_q_BxM: int32, gene with the highest Q; equals top_p for the plain masked LM.
    """

    cross_entropy: jax.Array
    similarity: jax.Array
    positions: jax.Array
    pairs: jax.Array
    top_p_BxM: jax.Array
    top_q_BxM: jax.Array


def cab_loss(
    hidden_BxMxD: jax.Array,
    embedding_VxD: jax.Array,
    bias_V: jax.Array,
    labels_BxM: jax.Array,
    known_BxV: jax.Array,
    *,
    variant: Variant = "recalibrated",
    similarity: Similarity = "cosine",
    implementation: str | None = None,
) -> CabLoss:
    """Cumulative assignment blocking (Geneformer-CAB, bioRxiv 10.1101/2025.11.04.686458).

    With P_i = softmax(hidden_i . embedding + bias), C_i(v) = (1 - known(v)) prod_{j<i} (1 - P_j(v))
    over the masked slots j before i, Q_i = P_i C_i / max(sum P_i C_i, 1e-18).

    Args:
      hidden_BxMxD: states at the masked slots, in rank order; float32, bfloat16 or float64.
        Products accumulate in float32 (float64 for float64).
      embedding_VxD: output embedding.
      bias_V: one bias per gene.
      labels_BxM: int, true gene; -1 = empty slot.
      known_BxV: bool, gene stands at a position that was not selected for masking.
      variant: the cross-entropy reads Q ("recalibrated") or P ("plain").
      similarity: of Q_i and Q_j: cosine with rows over max(norm, 1e-12), dot product, or none.
      implementation: "reference" or "blocked"; None takes the fastest for the platform. A named
        one runs or raises; it never falls back.

    Raises:
      ValueError: unknown variant, similarity or implementation, or shapes that do not fit.
    """
    _check(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)
    if known_BxV.shape != (len(hidden_BxMxD), len(embedding_VxD)) or known_BxV.dtype != bool:
        raise ValueError(f"known must be bool [B, V], got {known_BxV.dtype} {known_BxV.shape}")
    if variant not in ("recalibrated", "plain"):
        raise ValueError(f"variant {variant!r}; there are 'recalibrated' and 'plain'")
    if similarity not in ("cosine", "dot", "none"):
        raise ValueError(f"similarity {similarity!r}; there are 'cosine', 'dot' and 'none'")
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, known_BxV
    module = _module(implementation)
    if module is reference:
        found = reference.cab(*arrays, variant, similarity)
    else:
        found = passes.cab(passes.Cut(module, variant, similarity, None), *arrays)
    cross_entropy, pair_sum, top_p, top_q = found
    return CabLoss(cross_entropy, pair_sum, *_counts(labels_BxM, cross_entropy), top_p, top_q)


def masked_lm_loss(
    hidden_BxMxD: jax.Array,
    embedding_VxD: jax.Array,
    bias_V: jax.Array,
    labels_BxM: jax.Array,
    *,
    implementation: str | None = None,
) -> CabLoss:
    """The plain masked language model: `cab_loss` without blocking and without similarity."""
    _check(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)
    arrays = hidden_BxMxD, embedding_VxD, bias_V, labels_BxM
    module = _module(implementation)
    if module is reference:
        cross_entropy, top_p = reference.masked_lm(*arrays)
    else:
        cross_entropy, top_p = passes.masked_lm(passes.Cut(module, "plain", "none", None), *arrays)
    zero = jnp.zeros_like(cross_entropy)
    return CabLoss(cross_entropy, zero, *_counts(labels_BxM, cross_entropy), top_p, top_p)


def _module(implementation: str | None):
    name = "blocked" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {name!r}; there are {sorted(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[name]


def _counts(labels_BxM, like):
    slots_B = (labels_BxM >= 0).sum(1).astype(like.dtype)
    return slots_B.sum(), (slots_B * (slots_B - 1) / 2).sum()


def _check(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    fits = (
        hidden_BxMxD.ndim == 3
        and labels_BxM.shape == hidden_BxMxD.shape[:2]
        and embedding_VxD.shape == (bias_V.shape[0], hidden_BxMxD.shape[2])
    )
    if not fits:
        raise ValueError(
            "shapes do not fit: hidden [B, M, D], embedding [V, D], bias [V], labels [B, M]; got "
            f"{hidden_BxMxD.shape}, {embedding_VxD.shape}, {bias_V.shape}, {labels_BxM.shape}"
        )
