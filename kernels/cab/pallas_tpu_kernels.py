"""A cell's slots and a block of genes, in VMEM -> what the passes sum up; kernels for TPU.

Arrays inside are M x W, W genes of a block along the lanes. Blocking is a recurrence over the slots
and goes through them in groups of 8, the rows of a register: a scan within the group by doubling
(3 steps), and one row carried from group to group.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.cab.passes import SMALLEST, Rows

GROUP = 8  # slots that are worked on at once
STRIP = 128  # slots of the Gram matrix that are multiplied at once
FIELDS = (*Rows._fields, "at_top", "elsewhere")
LOWEST = float(jnp.finfo(jnp.float32).min)


class Inputs(NamedTuple):
    """What kernels read: float32 but for hidden and embedding; outside arrays, inside blocks.

    `slots` holds FIELDS (for the softmax the label alone), genes as places in this vocabulary, -1
    where they are elsewhere: float32 tells them apart up to 2^24. `unknown` is None for the plain
    masked language model.
    """

    hidden_BxMxD: jax.Array
    embedding_VxD: jax.Array
    bias_1xV: jax.Array
    slots_BxMxF: jax.Array
    unknown_Bx1xV: jax.Array | None


class Block(NamedTuple):
    """Operands of the product, without what lies behind the last gene, and gene numbers."""

    hidden_MxD: jax.Array
    embedding_WxD: jax.Array
    bias_1xW: jax.Array
    gene_1xW: jax.Array
    unknown_1xW: jax.Array | None


def on_block(kernel, genes: int, by_cell: bool, refs: Inputs, *others):
    """Runs a kernel on the block where the grid stands; a block's end may lie behind `genes`."""
    width = refs.bias_1xV.shape[1]
    first = pl.program_id(1 if by_cell else 0) * width
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    hidden, embedding = refs.hidden_BxMxD[0], refs.embedding_VxD[...]
    # What stands behind the last gene may be anything, NaN too.
    row = jax.lax.broadcasted_iota(jnp.int32, embedding.shape, 0)
    embedding = jnp.where(row < genes - first, embedding.astype(jnp.float32), 0.0)
    inside, unknown = lane < genes - first, refs.unknown_Bx1xV
    block = Block(
        hidden,
        embedding.astype(hidden.dtype),
        jnp.where(inside, refs.bias_1xV[...], -jnp.inf),
        (first + lane).astype(jnp.float32),
        None if unknown is None else jnp.where(inside, unknown[0], 0.0),
    )
    kernel(block, refs, pl.program_id(1) == 0, *others)


def softmax(block: Block, refs: Inputs, start, found, x):
    """Columns of `found`: the highest gene, its logit, the rest, the true gene's logit."""
    _begin(start, found, (0.0, LOWEST, 0.0, 0.0))
    x[...] = _logits(block)

    def update(group, nothing):
        at = _group(group)
        here, (field, found_here) = x[at], (_fields(refs, at), _columns(found, at))
        top, peak, rest, true = (found_here(i) for i in range(4))
        peak_here, top_here = _highest(here, block.gene_1xW)
        rest_here = jnp.where(top_here == block.gene_1xW, 0.0, jnp.exp(here - peak_here))
        rest_here = rest_here.sum(1, keepdims=True)
        true += _sum(here, field("label") == block.gene_1xW)
        higher = jnp.maximum(peak, peak_here)
        behind = jnp.exp(jnp.minimum(peak, peak_here) - higher)
        is_here = peak_here > peak
        rest = jnp.where(is_here, rest_here + (1 + rest) * behind, rest + (1 + rest_here) * behind)
        _write(found, at, (jnp.where(is_here, top_here, top), higher, rest, true))
        return nothing

    jax.lax.fori_loop(0, x.shape[0] // GROUP, update, 0)


def assignment(block: Block, refs: Inputs, start, found, *others):
    """Columns of `found`: q at and beside the true gene, the highest q, its gene.

    `others` are x and, before it, the Gram matrix and M x STRIP to work with, where it is wanted.
    """
    *grams, x = others
    _begin(start, found, (0.0, 0.0, -1.0, 0.0))
    x[...] = _logits(block)

    def update(group, c):
        at = _group(group)
        field, found_here = _fields(refs, at), _columns(found, at)
        true, other, best, top = (found_here(i) for i in range(4))
        P = _probability(x[at], field)
        before, through = _scan(_rest(P, field, block), jnp.multiply, 1.0)
        q = c * before * P
        is_label = field("label") == block.gene_1xW
        best_here, top_here = _highest(q, block.gene_1xW)
        higher = jnp.maximum(best, best_here)
        # Of q / its highest: q itself underflows where known genes hold nearly all of P.
        scale = jnp.maximum(higher, SMALLEST)
        x[at] = q * (1 / scale)
        top = jnp.where(best_here > best, top_here, top)
        _write(found, at, (true + _sum(q, is_label), other + _sum(q, ~is_label), higher, top))
        if grams:
            shrink = jnp.maximum(best, SMALLEST) / scale
            grams[1][at] = jnp.broadcast_to(shrink, (GROUP, STRIP))
        return c * through

    jax.lax.fori_loop(0, x.shape[0] // GROUP, update, block.unknown_1xW)
    if grams:
        _multiply(start, x, *grams)


def _multiply(start, part, gram, shrink):
    """Adds the products of `part` to the lower triangle of the Gram matrix, strip by strip."""

    @pl.when(start)
    def _():
        gram[...] = jnp.zeros(gram.shape, gram.dtype)

    across_1xM = shrink[...].T[:1]
    slots = part.shape[0]
    for first in range(0, slots, STRIP):
        end = min(first + STRIP, slots)
        product = _dot(part[first:end], part[:end], 1, 1)
        kept = shrink[first:end, :1] * across_1xM[:, :end]
        gram[0, first:end, :end] = gram[0, first:end, :end] * kept + product


def weights(similarity, block: Block, refs: Inputs, start, found, x, q, earlier):
    """Columns of `found`: the sum of s at the highest gene and elsewhere."""
    _begin(start, found, (0.0, 0.0))

    def use(at, field, P, u, w, w_later):
        s = P / u * w_later
        is_top = field("top") == block.gene_1xW
        at_top, elsewhere = (_columns(found, at)(i) for i in range(2))
        _write(found, at, (at_top + _sum(s, is_top), elsewhere + _sum(s, ~is_top)))

    _chain(block, refs, x, q, earlier, similarity, use)


def by_hidden(similarity, block: Block, refs: Inputs, start, d_hidden, x, q, earlier):
    """Sums dL/dx e over the blocks."""
    _begin(start, d_hidden)
    _d_logits(block, refs, x, q, earlier, similarity)
    d_hidden[0] += _dot(x[...].astype(block.hidden_MxD.dtype), block.embedding_WxD, 1, 0)


def by_embedding(
    similarity, block: Block, refs: Inputs, start, d_embedding, d_bias, x, q, earlier
):
    """Sums (dL/dx)' h and dL/dx over the cells."""
    _begin(start, d_embedding)
    _begin(start, d_bias)
    _d_logits(block, refs, x, q, earlier, similarity)
    d_embedding[...] += _dot(x[...].astype(block.hidden_MxD.dtype), block.hidden_MxD, 0, 0)
    d_bias[...] += x[...].sum(0, keepdims=True)


def _d_logits(block: Block, refs: Inputs, x, q, earlier, similarity: str):
    """Leaves dL/dx in `x`."""

    def use(at, field, P, u, w=None, w_later=None):
        is_label = field("label") == block.gene_1xW
        d_logits = field("on_p") * jnp.where(is_label, -u, P)
        if w is not None:
            is_top = field("top") == block.gene_1xW
            through = jnp.where(is_top, w_later, w_later / u - field("at_top"))
            d_logits += w - P * (field("sum_w") + through - field("elsewhere"))
        x[at] = d_logits

    _chain(block, refs, x, q, earlier, similarity, use)


def _chain(block: Block, refs: Inputs, x, q, earlier, similarity: str, use):
    """Hands P, u, w and the sum of all later w of each group to `use`: forwards for q, then back.

    For the plain masked language model P and u alone.
    """
    x[...] = _logits(block)
    groups = x.shape[0] // GROUP

    def alone(group, nothing):
        at = _group(group)
        field = _fields(refs, at)
        P = _probability(x[at], field)
        use(at, field, P, _rest(P, field, block))
        return nothing

    def forwards(group, carry):
        at = _group(group)
        field, (c, sum_before) = _fields(refs, at), carry
        x[at] = P = _probability(x[at], field)
        before, through = _scan(_rest(P, field, block), jnp.multiply, 1.0)
        q[at] = c * before * P
        if similarity != "none":
            before, total = _scan(q[at] * field("scale"), jnp.add, 0.0)
            earlier[at] = sum_before + before
            sum_before += total
        return c * through, sum_before

    def backwards(step, carry):
        at = _group(groups - 1 - step)
        field, (sum_after, w_after) = _fields(refs, at), carry
        P = x[at]
        u = _rest(P, field, block)
        is_label = field("label") == block.gene_1xW
        w = jnp.where(is_label, field("at_label"), q[at] * field("beside"))
        if similarity != "none":
            row = q[at] * field("scale")
            after, total = _scan(row, jnp.add, 0.0, reverse=True)
            toward = row if similarity == "cosine" else 1.0
            others = earlier[at] + sum_after + after
            w += field("weight") * row * (others - field("along") * toward)
            sum_after += total
        after, total = _scan(w, jnp.add, 0.0, reverse=True)
        use(at, field, P, u, w, w_after + after)
        return sum_after, w_after + total

    if block.unknown_1xW is None:
        jax.lax.fori_loop(0, groups, alone, 0)
        return
    zero = jnp.zeros_like(block.bias_1xW)
    jax.lax.fori_loop(0, groups, forwards, (block.unknown_1xW, zero))
    jax.lax.fori_loop(0, groups, backwards, (zero, zero))


def _scan(values, combine, neutral: float, *, reverse: bool = False):
    """What combines the rows before each (after, in reverse), and all of them as one row."""
    rows = values.shape[0]
    row = jax.lax.broadcasted_iota(jnp.int32, values.shape, 0)

    def shifted(values, by):
        turned = pltpu.roll(values, rows - by if reverse else by, 0)
        return jnp.where(row < rows - by if reverse else row >= by, turned, neutral)

    for by in (1, 2, 4):
        values = combine(values, shifted(values, by))
    return shifted(values, 1), values[:1] if reverse else values[rows - 1 :]


def _logits(block: Block):
    return _dot(block.hidden_MxD, block.embedding_WxD, 1, 1) + block.bias_1xW


def _probability(x, field):
    return jnp.exp(x - field("peak")) * field("inverse")


def _rest(P, field, block: Block):
    """u = 1 - P."""
    return jnp.where(field("top") == block.gene_1xW, field("left"), 1.0 - P)


def _dot(left, right, over_left: int, over_right: int):
    """Product of matrices over these dimensions; float32 operands are not rounded to bfloat16."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left, right, (((over_left,), (over_right,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _highest(values, gene_1xW):
    """Of each row the highest value and its gene; the first among equals."""
    here = values.max(1, keepdims=True)
    return here, jnp.where(values == here, gene_1xW, jnp.inf).min(1, keepdims=True)


def _sum(values, where):
    return jnp.where(where, values, 0.0).sum(1, keepdims=True)


def _group(group):
    return pl.ds(pl.multiple_of(group * GROUP, GROUP), GROUP)


def _fields(refs: Inputs, at):
    column = _columns(refs.slots_BxMxF, at)
    return lambda name: column(FIELDS.index(name))


def _columns(ref, at):
    return lambda i: ref[0, at, i : i + 1]


def _write(found, at, columns):
    for i, column in enumerate(columns):
        found[0, at, i : i + 1] = column


def _begin(start, ref, columns=None):
    """Sets what a kernel sums up, before the first of its summands."""

    @pl.when(start)
    def _():
        if columns is None:
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
        for i, value in enumerate(columns or ()):
            ref[0, :, i : i + 1] = jnp.full((ref.shape[1], 1), value, ref.dtype)
