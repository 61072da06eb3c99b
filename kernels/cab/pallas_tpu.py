"""The passes as Pallas kernels for TPU: a cell's slots stay in VMEM, genes pass by in blocks.

One kernel makes the logits of a cell and a block of genes and does all that follows from them
there; only numbers per slot, Gram matrices and gradients leave it. The gradients come from two
kernels, since one sums over blocks and the other over cells: both compute the logits anew.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels.cab import pallas_tpu_kernels as kernels
from kernels.cab.pallas_tpu_kernels import FIELDS, GROUP, STRIP, Inputs
from kernels.cab.passes import Assigned, Rows, Softmax, axes_of, vary

BLOCK = 512  # genes of a block, at most; a power of two, at least 128
LANES = 128
# XLA gives a kernel 16 MiB unless it asks. v5p and v7x have 64 MiB, v5e and v6e 128 MiB.
VMEM = 48 * 2**20
INTERPRET = False  # tests on other machines set it; without it a call there raises


def softmax(hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first) -> Softmax:
    """See `passes`: of each slot the gene with the highest logit, that logit, and the rest."""
    inputs = _inputs(hidden_BxMxD, embedding_VxD, bias_V, first, {"label": labels_BxM})
    (found,) = _call(kernels.softmax, inputs, len(bias_V), ["slots"], scratch=1)
    top, peak, rest, true = (found[:, : labels_BxM.shape[1], i] for i in range(4))
    return Softmax(_gene(top, first), peak, rest, true)


def assignment(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, gram: bool
) -> Assigned:
    """See `passes`: sums of q, its highest gene, and the Gram matrix where it is asked for."""
    inputs = _inputs(hidden_BxMxD, embedding_VxD, bias_V, first, rows._asdict(), known_BxV)
    outputs = ["slots", "gram"] if gram else ["slots"]
    slots = labels_BxM.shape[1]
    found, *products = _call(kernels.assignment, inputs, len(bias_V), outputs, scratch=1)
    true, other, best, top = (found[:, :slots, i] for i in range(4))
    whole = None
    if gram:
        lower = jnp.tril(products[0][:, :slots, :slots])
        whole = lower + jnp.swapaxes(jnp.tril(lower, -1), 1, 2)
    return Assigned(true, other, best, _gene(top, first), whole)


def weights(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows, similarity: str
):
    """See `passes`: of each slot, B x M, the sum of s at its highest gene and elsewhere."""
    inputs = _inputs(hidden_BxMxD, embedding_VxD, bias_V, first, rows._asdict(), known_BxV)
    kernel = functools.partial(kernels.weights, similarity)
    (found,) = _call(kernel, inputs, len(bias_V), ["slots"], scratch=3)
    return found[:, : labels_BxM.shape[1], 0], found[:, : labels_BxM.shape[1], 1]


def gradients(
    hidden_BxMxD, embedding_VxD, bias_V, labels_BxM, first, known_BxV, rows: Rows,
    at_top_BxM, elsewhere_BxM, similarity: str,
):
    """See `passes`: gradients by hidden states, embedding and bias, in float32.

    `known_BxV` is None for the plain masked language model.
    """
    fields = rows._asdict()
    if known_BxV is not None:
        fields |= {"at_top": at_top_BxM, "elsewhere": elsewhere_BxM}
    inputs = _inputs(hidden_BxMxD, embedding_VxD, bias_V, first, fields, known_BxV)
    call = functools.partial(_call, inputs=inputs, genes=len(bias_V), scratch=3)
    (d_hidden,) = call(functools.partial(kernels.by_hidden, similarity), outputs=["hidden"])
    d_embedding, d_bias = call(
        functools.partial(kernels.by_embedding, similarity), outputs=["embedding", "bias"],
        by_cell=False,
    )
    (slots, width), genes = hidden_BxMxD.shape[1:], len(bias_V)
    return d_hidden[:, :slots, :width], d_embedding[:genes, :width], d_bias[0, :genes]


def _inputs(hidden_BxMxD, embedding_VxD, bias_V, first, fields: dict, known_BxV=None) -> Inputs:
    """Slots to a multiple of GROUP, D to one of LANES, genes to LANES at least; see `Inputs`."""
    _check(hidden_BxMxD, embedding_VxD, bias_V)
    (slots, width), genes = hidden_BxMxD.shape[1:], len(bias_V)
    more_slots, more_width, more_genes = -slots % GROUP, -width % LANES, max(LANES - genes, 0)

    def column(name):
        # An added slot has no gene, and a peak so high that its P is 0.
        values = fields[name]
        if name in ("label", "top"):
            place = values - first
            values = jnp.where((place >= 0) & (place < genes), place, -1)
        added = {"label": -1.0, "top": -1.0, "peak": -kernels.LOWEST}.get(name, 0.0)
        values = values.astype(jnp.float32)
        return jnp.pad(values, ((0, 0), (0, more_slots)), constant_values=added)

    unknown_Bx1xV = None
    if known_BxV is not None:
        unknown = (~known_BxV).astype(jnp.float32)
        unknown_Bx1xV = jnp.pad(unknown, ((0, 0), (0, more_genes)))[:, None]
    return _alike(Inputs(
        jnp.pad(hidden_BxMxD, ((0, 0), (0, more_slots), (0, more_width))),
        jnp.pad(embedding_VxD, ((0, more_genes), (0, more_width))),
        jnp.pad(bias_V.astype(jnp.float32), (0, more_genes))[None],
        jnp.stack([column(name) for name in FIELDS if name in fields], -1),
        unknown_Bx1xV,
    ))


def _alike(inputs: Inputs) -> Inputs:
    """Inputs that vary over the same mesh axes, inside a `shard_map` that checks them."""
    axes = axes_of(*inputs)
    return jax.tree.map(lambda a: vary(a, axes), inputs)


def _call(kernel, inputs: Inputs, genes: int, outputs: list[str], scratch: int, by_cell=True):
    """Runs a kernel over cells and blocks of genes; the later of the two is summed over.

    Args:
      genes: V without padding.
      outputs: "slots" (4 numbers of each), "gram", "hidden", "embedding" and "bias".
      scratch: number of M x W arrays it works with.
      by_cell: goes through the blocks of a cell, then the next cell; else the other way round.
    """
    (cells, slots, width), padded = inputs.hidden_BxMxD.shape, inputs.bias_1xV.shape[1]
    wide = _width(inputs, padded)
    grid = (cells, pl.cdiv(padded, wide))

    def spec(shape, index):
        return pl.BlockSpec(shape, index if by_cell else lambda k, b: index(b, k))

    cell, block = lambda b, k: (b, 0, 0), lambda b, k: (k, 0)
    across = spec((1, wide), lambda b, k: (0, k))
    fields = inputs.slots_BxMxF.shape[2]
    specs = Inputs(
        spec((1, slots, width), cell), spec((wide, width), block), across,
        spec((1, slots, fields), cell),
        None if inputs.unknown_Bx1xV is None else spec((1, 1, wide), lambda b, k: (b, 0, k)),
    )
    available = {
        "slots": ((cells, slots, 4), spec((1, slots, 4), cell)),
        "gram": ((cells, slots, slots), spec((1, slots, slots), cell)),
        "hidden": ((cells, slots, width), spec((1, slots, width), cell)),
        "embedding": ((padded, width), spec((wide, width), block)),
        "bias": ((1, padded), across),
    }
    varying = jax.typeof(inputs.hidden_BxMxD).manual_axis_type
    shapes = [
        jax.ShapeDtypeStruct(available[name][0], jnp.float32, manual_axis_type=varying)
        for name in outputs
    ]
    shrink = [pltpu.VMEM((slots, STRIP), jnp.float32)] if "gram" in outputs else []
    return pl.pallas_call(
        functools.partial(kernels.on_block, kernel, genes, by_cell),
        grid=grid if by_cell else grid[::-1],
        in_specs=[specs],
        out_specs=[available[name][1] for name in outputs],
        out_shape=shapes,
        scratch_shapes=[*shrink, *[pltpu.VMEM((slots, wide), jnp.float32)] * scratch],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=INTERPRET,
        name="cab_" + getattr(kernel, "func", kernel).__name__,
    )(inputs)


def _width(inputs: Inputs, genes: int) -> int:
    """W: the widest block for which VMEM holds what the greediest kernel needs."""
    _, slots, width = inputs.hidden_BxMxD.shape
    wide = min(BLOCK, genes // LANES * LANES)
    while wide >= LANES:
        # Float32 in and out, twice each (the next comes while one is worked on), and copies.
        if 4 * (5 * slots * width + 5 * wide * width + 6 * slots * wide + 3 * slots**2) <= VMEM:
            return wide
        wide = wide // 2 // LANES * LANES
    raise NotImplementedError(
        f"{slots} slots of width {width} do not fit the {VMEM >> 20} MiB of VMEM that a kernel "
        "for TPU plans with; use implementation='blocked' or mask fewer positions"
    )


def _check(hidden_BxMxD, embedding_VxD, bias_V):
    for name, array in (("hidden", hidden_BxMxD), ("embedding", embedding_VxD)):
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            raise NotImplementedError(
                f"{name} is {array.dtype}; kernels for TPU take float32 and bfloat16, "
                "use implementation='blocked'"
            )
    if len(bias_V) > 2**24:
        raise NotImplementedError(
            f"{len(bias_V)} genes; kernels for TPU count to 2^24, use implementation='blocked'"
        )


def _gene(place_BxM, first):
    return (place_BxM.astype(jnp.int32) + first).astype(jnp.int32)
