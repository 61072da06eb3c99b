"""Hidden states at masked slots -> loss sums and predicted genes; picks the implementation."""

import importlib
from types import ModuleType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab import blocked, passes, reference, slotwise
from kernels.cab.passes import axes_of, vary

IMPLEMENTATIONS = ("reference", "blocked", "pallas_tpu", "pallas_gpu")  # modules beside this one
DEFAULT = {"tpu": "pallas_tpu"}  # by platform; "blocked" elsewhere. kernels/README.md says why

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
      top_p_BxM: int32, gene with the highest P at each slot (lowest id among equals); -1 at an
        empty one.
      top_q_BxM: int32, gene with the highest Q, likewise; equals top_p for the plain masked LM.
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
    vocabulary_axis: str | None = None,
) -> CabLoss:
    """Cumulative assignment blocking (Geneformer-CAB, bioRxiv 10.1101/2025.11.04.686458).

    With P_i = softmax(hidden_i . embedding + bias), C_i(v) = (1 - known(v)) prod_{j<i} (1 - P_j(v))
    over the masked slots j before i, Q_i = P_i C_i / max(sum P_i C_i, 1e-18).

    Args:
      hidden_BxMxD: states at the masked slots, in rank order; float32, bfloat16 or float64.
        Products accumulate in float32 (float64 for float64).
      embedding_VxD: output embedding.
      bias_V: one bias per gene.
      labels_BxM: int below V, true gene; -1 = empty slot.
      known_BxV: bool, gene stands at a position that was not selected for masking.
      variant: the cross-entropy reads Q ("recalibrated") or P ("plain").
      similarity: of Q_i and Q_j: cosine with rows over max(norm, 1e-12), dot product, or none.
      implementation: "reference", "blocked", "pallas_tpu" or "pallas_gpu"; None takes the
        platform's default. A named one runs or raises; it never falls back. Pallas kernels cannot
        be cut by the compiler: on several devices call them inside `jax.shard_map`.
      vocabulary_axis: inside `jax.shard_map`, the mesh axis along which embedding, bias and known
        are cut into equal parts; labels and predicted genes count over all parts.

    Raises:
      ValueError: unknown variant, similarity or implementation, or shapes that do not fit.
      NotImplementedError: the named implementation cannot do what is asked for.
    """
    checked = _checked(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)
    known_BxV = jnp.asarray(known_BxV)
    if known_BxV.shape != (len(checked[0]), len(checked[1])) or known_BxV.dtype != bool:
        raise ValueError(f"known must be bool [B, V], got {known_BxV.dtype} {known_BxV.shape}")
    if variant not in ("recalibrated", "plain"):
        raise ValueError(f"variant {variant!r}; there are 'recalibrated' and 'plain'")
    if similarity not in ("cosine", "dot", "none"):
        raise ValueError(f"similarity {similarity!r}; there are 'cosine', 'dot' and 'none'")
    module = _module(implementation)
    arrays = _varying(vocabulary_axis, *checked, known_BxV)
    if module is reference:
        _whole_vocabulary(vocabulary_axis)
        found = reference.cab(*arrays, variant, similarity)
    else:
        compute = slotwise.cab if module is blocked else passes.cab
        found = compute(passes.Cut(module, variant, similarity, vocabulary_axis), *arrays)
    cross_entropy, pair_sum, *tops = found
    return _loss(cross_entropy, pair_sum, checked[3], *tops)


def masked_lm_loss(
    hidden_BxMxD: jax.Array,
    embedding_VxD: jax.Array,
    bias_V: jax.Array,
    labels_BxM: jax.Array,
    *,
    implementation: str | None = None,
    vocabulary_axis: str | None = None,
) -> CabLoss:
    """The plain masked language model: `cab_loss` without blocking and without similarity."""
    checked = _checked(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM)
    module = _module(implementation)
    arrays = _varying(vocabulary_axis, *checked)
    if module is reference:
        _whole_vocabulary(vocabulary_axis)
        cross_entropy, top_p = reference.masked_lm(*arrays)
    else:
        cut = passes.Cut(module, "plain", "none", vocabulary_axis)
        cross_entropy, top_p = passes.masked_lm(cut, *arrays)
    return _loss(cross_entropy, jnp.zeros_like(cross_entropy), checked[3], top_p, top_p)


def _module(implementation: str | None) -> ModuleType:
    name = DEFAULT.get(platform(), "blocked") if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {name!r}; there are {sorted(IMPLEMENTATIONS)}")
    return importlib.import_module(f"kernels.cab.{name}")  # only what runs is loaded


def platform() -> str:
    """Of the mesh in use, which may be one that is compiled for without its hardware."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _varying(vocabulary_axis: str | None, hidden, embedding, bias, labels, known=None):
    """The arrays, each typed as varying over the mesh axes that any of them varies over.

    Inside `shard_map` this leaves it to jax to sum gradients over the devices that share an array.
    """
    of_slots = [hidden, labels]
    of_genes = [embedding, bias] if known is None else [embedding, bias, known]
    axes = axes_of(*of_slots, *of_genes)
    if vocabulary_axis is not None and not all(vocabulary_axis in axes_of(a) for a in of_genes):
        raise ValueError(
            f"embedding, bias and known are not cut along {vocabulary_axis!r}: call this inside "
            "jax.shard_map with that axis in their in_specs, and check_vma left on"
        )
    hidden, labels = (vary(a, axes - {vocabulary_axis}) for a in of_slots)
    embedding, bias, *known = (vary(a, axes) for a in of_genes)
    return hidden, embedding, bias, labels, *known


def _whole_vocabulary(vocabulary_axis: str | None) -> None:
    if vocabulary_axis is not None:
        raise NotImplementedError(
            "the reference needs the whole vocabulary; use implementation='blocked' with "
            f"vocabulary_axis {vocabulary_axis!r}"
        )


def _loss(cross_entropy, similarity, labels_BxM, *tops_BxM) -> CabLoss:
    filled_BxM = labels_BxM >= 0
    slots_B = filled_BxM.sum(1).astype(cross_entropy.dtype)
    pairs_B = slots_B * (slots_B - 1) / 2
    tops_BxM = (jnp.where(filled_BxM, top_BxM, -1) for top_BxM in tops_BxM)
    return CabLoss(cross_entropy, similarity, slots_B.sum(), pairs_B.sum(), *tops_BxM)


def _checked(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM):
    """The arrays; refuses what does not fit, and takes out what stands at empty slots."""
    named = {
        "hidden": hidden_BxMxD, "embedding": embedding_VxD, "bias": bias_V, "labels": labels_BxM
    }
    hidden, embedding, bias, labels = arrays = [jnp.asarray(array) for array in named.values()]
    fits = (
        hidden.ndim == 3
        and labels.shape == hidden.shape[:2]
        and bias.ndim == 1
        and embedding.shape == (bias.size, hidden.shape[2])
        and min(embedding.size, hidden.shape[1]) > 0
    )
    if not fits:
        raise ValueError(
            "shapes do not fit: hidden [B, M, D], embedding [V, D], bias [V], labels [B, M], with "
            f"M, V and D at least 1; got {', '.join(str(array.shape) for array in arrays)}"
        )
    for name, array in zip(named, arrays, strict=True):
        kind = jnp.signedinteger if name == "labels" else jnp.floating
        if not jnp.issubdtype(array.dtype, kind):
            raise ValueError(
                f"{name} has the type {array.dtype}; give "
                + ("signed integers" if name == "labels" else "floating-point numbers")
            )
    return jnp.where((labels >= 0)[..., None], hidden, 0), embedding, bias, labels
