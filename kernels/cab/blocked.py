"""The passes of the plain masked language model in XLA: scans over blocks of the vocabulary.

Arrays inside are M x B x W, W genes of a block. Of CAB there is `slotwise`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels.cab.passes import Rows, Softmax, axes_of, vary

FILL = -2  # no label: those are genes, or -1
BLOCK = 512  # genes of a block, at most


class _Blocks(NamedTuple):
    """Embedding, bias and gene ids, cut along the vocabulary."""

    embedding_KxWxD: jax.Array
    bias_KxW: jax.Array
    genes_KxW: jax.Array  # FILL where there is none


def softmax(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first) -> Softmax:
    """See `passes`: of each slot the gene with the highest logit, that logit, and the rest."""
    hidden_MxBxD, label = jnp.swapaxes(hidden_BxMxD, 0, 1), labels_BxM.T
    blocks = _cut(embedding_VxD, bias_V, first)

    def update(carry, block):
        top, peak, rest, true = carry
        x = _logits(hidden_MxBxD, block)
        peak_here, top_here = _highest(x, block)
        # A block whose every bias is -inf has that as its peak.
        finite_peak = jnp.maximum(peak_here, jnp.finfo(x.dtype).min)[..., None]
        rest_here = jnp.where(_is(top_here, block), 0.0, jnp.exp(x - finite_peak)).sum(-1)
        true += _at(label, x, block)
        higher = jnp.maximum(peak, peak_here)
        behind = jnp.exp(jnp.minimum(peak, peak_here) - higher)
        is_here = peak_here > peak
        rest = jnp.where(is_here, rest_here + (1 + rest) * behind, rest + (1 + rest_here) * behind)
        return (jnp.where(is_here, top_here, top), higher, rest, true), None

    dtype = _accumulate(hidden_BxMxD)
    start = (
        jnp.zeros(label.shape, jnp.int32), jnp.full(label.shape, jnp.finfo(dtype).min, dtype),
        jnp.zeros(label.shape, dtype), jnp.zeros(label.shape, dtype),
    )
    found, _ = _scan(update, start, blocks, hidden_BxMxD, labels_BxM)
    return Softmax(*(a.T for a in found))


def gradients(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows,
    at_top_BxM, elsewhere_BxM, similarity: str,
):
    """See `passes`: gradients by hidden states, embedding and bias, in the accumulating type.

    Of the plain masked language model alone, which has no known genes, sums or similarity.
    """
    hidden_MxBxD, rows = jnp.swapaxes(hidden_BxMxD, 0, 1), jax.tree.map(jnp.transpose, rows)
    blocks = _cut(embedding_VxD, bias_V, first)
    dtype = _accumulate(hidden_BxMxD)

    def update(d_hidden, block):
        P = jnp.exp(_logits(hidden_MxBxD, block) - rows.peak[..., None]) * rows.inverse[..., None]
        left = jnp.where(_is(rows.top, block), rows.left[..., None], 1.0 - P)
        d_logits = rows.on_p[..., None] * jnp.where(_is(rows.label, block), -left, P)
        low = d_logits.astype(hidden_MxBxD.dtype)
        d_hidden += jnp.einsum(
            "mbw,wd->mbd", low, block.embedding_KxWxD, preferred_element_type=dtype
        )
        # D x W, not W x D: the product then needs no transposed copy of the large operand.
        d_embedding = jnp.einsum("mbd,mbw->dw", hidden_MxBxD, low, preferred_element_type=dtype)
        # A product too: on CPU quicker than XLA's sum of columns.
        rows_NxW, precision = d_logits.reshape(-1, d_logits.shape[-1]), jax.lax.Precision.HIGHEST
        ones_N = jnp.ones(len(rows_NxW), dtype)
        d_bias = jnp.einsum("nw,n->w", rows_NxW, ones_N, precision=precision)
        return d_hidden, (d_embedding, d_bias)

    start = jnp.zeros(hidden_MxBxD.shape, dtype)
    d_hidden, (d_embedding_KxDxW, d_bias) = _scan(update, start, blocks, hidden_BxMxD, labels_BxM)
    d_embedding = jnp.swapaxes(d_embedding_KxDxW, 1, 2).reshape(-1, embedding_VxD.shape[1])
    return (
        jnp.swapaxes(d_hidden, 0, 1),
        d_embedding[: len(bias_V)],
        d_bias.reshape(-1)[: len(bias_V)],
    )


def _logits(hidden_MxBxD, block: _Blocks):
    dtype = _accumulate(hidden_MxBxD)
    product = jnp.einsum(
        "mbd,wd->mbw", hidden_MxBxD, block.embedding_KxWxD, preferred_element_type=dtype
    )
    return product + block.bias_KxW.astype(dtype)


def _cut(embedding_VxD, bias_V, first) -> _Blocks:
    """Cuts the vocabulary into equal blocks; what fills the last has probability 0."""
    genes = width = len(bias_V)
    if genes > BLOCK:
        width = -(-genes // (-(-genes // BLOCK) * 64)) * 64
    count = -(-genes // width)
    fill = count * width - genes
    embedding = jnp.pad(embedding_VxD, ((0, fill), (0, 0))).reshape(count, width, -1)
    bias = jnp.pad(bias_V, (0, fill), constant_values=-jnp.inf).reshape(count, width)
    ids = first + jnp.arange(genes, dtype=jnp.int32)
    ids = jnp.pad(ids, (0, fill), constant_values=FILL).reshape(count, width)
    return _Blocks(embedding, bias, ids)


def _scan(update, start, blocks: _Blocks, *inputs):
    """`lax.scan` over blocks; `start` varies over the mesh axes that the inputs vary over."""
    axes = axes_of(*inputs, *blocks)
    return jax.lax.scan(update, jax.tree.map(lambda a: vary(a, axes), start), blocks)


def _highest(values, block: _Blocks):
    """The highest value and its gene; the first among equals."""
    here = values.max(-1)
    places = jnp.arange(values.shape[-1], dtype=jnp.int32)
    # Two plain reductions: XLA's argmax on CPU is one slow loop, ten times their time.
    at = jnp.where(values == here[..., None], places, values.shape[-1]).min(-1)
    return here, block.genes_KxW[0] + at


def _is(gene, block: _Blocks):
    return gene[..., None] == block.genes_KxW


def _at(gene, values, block: _Blocks):
    """The value at a gene, 0 where it is not in the block."""
    place = jnp.clip(gene - block.genes_KxW[0], 0, values.shape[-1] - 1)
    found = jnp.take_along_axis(values, place[..., None], -1)[..., 0]
    return jnp.where(gene == block.genes_KxW[place], found, 0.0)


def _accumulate(hidden):
    return jnp.promote_types(hidden.dtype, jnp.float32)
