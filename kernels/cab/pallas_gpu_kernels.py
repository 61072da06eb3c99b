"""Kernels for Hopper GPUs through Pallas' Mosaic GPU: operands of the passes -> sums and blocks.

A program takes one cell and WIDTH genes, a gene for each of a warpgroup's threads. It walks over
the slots in tiles: the tensor cores make a tile's logits from bfloat16 operands in shared memory;
then each thread goes down the column of its gene, the blocking's running products in registers,
all in float32; what is summed over genes is summed tile by tile and leaves the program as one
number per slot and block of genes. For the way back up, each tile's logits are made anew and its
products run down again from what they were at its start, which shared memory holds.

Shapes in names are those of `passes`; W are the genes of a launch, K = W / WIDTH blocks.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from kernels.cab.pallas_gpu_program import (
    BY_GENE,
    BY_THREAD,
    LABEL,
    TILE,
    TILED,
    TOP,
    Operands,
    Program,
    across,
    launch,
    load,
    store,
    zeros,
)

LOWEST = -3e38  # logits are not below: exp(x - highest) is then defined where all biases are -inf
NONE = 2**30  # behind all genes
FLOAT = (jnp.float32,)


def softmax(operands: Operands):
    """Of each block and slot, K x B x M: the gene with the highest logit, that logit, the sum of
    the others' exponentials beside it, the true gene's logit."""

    def kernel(program, outputs):
        genes, bias = program.tile_of_genes(), load(program.operands.bias_W, program.genes, BY_GENE)

        @pl.loop(0, program.tiles())
        def _(tile):
            program.describe(tile)
            x = jnp.maximum(program.logits(tile) + across(bias, 1), LOWEST)
            peak = x.max(1)
            top = jnp.where(x == across(peak, 0), genes, NONE).min(1)
            rest = jnp.where(genes == across(top, 0), 0.0, jnp.exp(x - across(peak, 0))).sum(1)
            true = jnp.where(program.tile_is(LABEL), x, 0.0).sum(1)
            program.store(tile, outputs, (top, peak, rest, true))

    return launch(kernel, operands, (), (jnp.int32, *FLOAT * 3))


def assignment(operands: Operands, with_q: bool):
    """Of each block and slot, K x B x M: q at the true gene, the sum of q beside it, the highest q,
    its gene; and, if asked for, q itself: B x M x W."""

    def kernel(program, outputs):
        x = program.memory["x"]

        def down_a_tile(tile, c):
            program.describe(tile)
            store(x, program.logits(tile))

            def down(slot, c):
                P, u = program.probabilities(slot)
                q = c * P
                x[slot] = q
                if with_q:
                    outputs[4][program.cell, tile * TILE + slot, program.genes] = q
                return c * u

            c = lax.fori_loop(0, program.slots(tile), down, c)
            q, is_label = load(x, ..., TILED), program.tile_is(LABEL)
            best = q.max(1)
            top = jnp.where(q == across(best, 0), program.tile_of_genes(), NONE).min(1)
            true, other = jnp.where(is_label, q, 0.0).sum(1), jnp.where(is_label, 0.0, q).sum(1)
            program.store(tile, outputs, (true, other, best, top))
            return c

        lax.fori_loop(0, program.tiles(), down_a_tile, program.unknown())

    per_gene = ((operands.M, jnp.float32),) * with_q
    return launch(kernel, operands, ("x",), (*FLOAT * 3, jnp.int32), per_gene)


def weights(operands: Operands, similarity: str):
    """Of each block and slot, K x B x M: s at the gene with the highest P, its sum elsewhere."""

    def kernel(program, outputs):
        x = program.memory["x"]

        def visit(nothing, tile, slot, P, u, w, w_later):
            x[slot] = P / u * w_later
            return nothing

        def leave(tile):
            s, is_top = load(x, ..., TILED), program.tile_is(TOP)
            sums = jnp.where(is_top, s, 0.0).sum(1), jnp.where(is_top, 0.0, s).sum(1)
            program.store(tile, outputs, sums)

        _down_and_up(program, similarity, visit, leave)

    return launch(kernel, operands, ("x", "q", "earlier"), FLOAT * 2)


def d_logits(operands: Operands, similarity: str):
    """dL/dx rounded to bfloat16, B x M x W, and its sum over the slots before that, B x 1 x W."""

    def kernel(program, outputs):
        def visit(d_bias, tile, slot, P, u, w, w_later):
            through = jnp.where(
                program.is_of(TOP, slot), w_later, w_later / u - program.number("at_top", slot)
            ) - program.number("elsewhere", slot)
            d = w - P * (program.number("sum_w", slot) + through)
            d += _of_masked_lm(program, P, u, slot)
            outputs[0][program.cell, tile * TILE + slot, program.genes] = d.astype(jnp.bfloat16)
            return d_bias + d

        d_bias = _down_and_up(program, similarity, visit, lambda tile: None)
        outputs[1][program.cell, 0, program.genes] = d_bias

    per_gene = (operands.M, jnp.bfloat16), (1, jnp.float32)
    return launch(kernel, operands, ("x", "q", "earlier"), (), per_gene)


def d_logits_of_masked_lm(operands: Operands):
    """The same of the plain masked language model."""

    def kernel(program, outputs):
        def down_a_tile(tile, d_bias):
            program.describe(tile)
            store(program.memory["x"], program.logits(tile))

            def down(slot, d_bias):
                d = _of_masked_lm(program, *program.probabilities(slot), slot)
                outputs[0][program.cell, tile * TILE + slot, program.genes] = d.astype(jnp.bfloat16)
                return d_bias + d

            return lax.fori_loop(0, program.slots(tile), down, d_bias)

        d_bias = lax.fori_loop(0, program.tiles(), down_a_tile, zeros())
        outputs[1][program.cell, 0, program.genes] = d_bias

    return launch(kernel, operands, ("x",), (), ((operands.M, jnp.bfloat16), (1, jnp.float32)))


def _down_and_up(program: Program, similarity: str, visit, leave):
    """Runs over the slots for q, then back up for w, the sum of later w and what is made of them.

    `visit` gets and returns a number by gene, 0 at first; `leave` is called behind each tile.
    """
    x, q_of, earlier_of, starts = (program.memory[n] for n in ("x", "q", "earlier", "starts"))

    def down_a_tile(tile, start, keep: bool):
        program.describe(tile)
        store(x, program.logits(tile))

        def down(slot, carry):
            c, earlier = carry
            P, u = program.probabilities(slot)
            q = c * P
            if keep:
                x[slot], q_of[slot], earlier_of[slot] = P, q, earlier
            return c * u, earlier + q * program.number("scale", slot)

        return lax.fori_loop(0, program.slots(tile), down, start)

    def to_the_next(tile, start):
        c, earlier = down_a_tile(tile, start, keep=False)
        starts[tile + 1, 0], starts[tile + 1, 1] = c, earlier
        return c, earlier

    def up_a_tile(step, carry):
        tile = program.tiles() - 1 - step
        down_a_tile(tile, tuple(load(starts.at[tile], i, BY_THREAD) for i in (0, 1)), keep=True)

        def up(step, carry):
            slot = program.slots(tile) - 1 - step
            later, w_later, visited = carry
            P, q, earlier = (load(of, slot, BY_THREAD) for of in (x, q_of, earlier_of))
            at_label, beside = (program.number(name, slot) for name in ("at_label", "beside"))
            w = jnp.where(program.is_of(LABEL, slot), at_label, q * beside)
            if similarity != "none":
                row = q * program.number("scale", slot)
                toward = row if similarity == "cosine" else 1.0
                others = earlier + later - program.number("along", slot) * toward
                w += program.number("weight", slot) * row * others
                later += row
            visited = visit(visited, tile, slot, P, program.left(P, slot), w, w_later)
            return later, w_later + w, visited

        carry = lax.fori_loop(0, program.slots(tile), up, carry)
        leave(tile)
        return carry

    unknown, zero = program.unknown(), zeros()
    starts[0, 0], starts[0, 1] = unknown, zero
    lax.fori_loop(0, program.tiles() - 1, to_the_next, (unknown, zero))
    return lax.fori_loop(0, program.tiles(), up_a_tile, (zero, zero, zero))[2]


def _of_masked_lm(program: Program, P, u, slot):
    on_p = program.number("on_p", slot)
    return on_p * jnp.where(program.is_of(LABEL, slot), -u, P)


