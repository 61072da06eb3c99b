"""What the kernels for Hopper GPUs are built of: a launch, its programs and their memory.

A program takes one cell and WIDTH genes, a gene for each of a warpgroup's threads, and sees the
slots in tiles of TILE. Arrays in a kernel are either a tile (TILE x WIDTH, spread over the threads
as the tensor cores leave it), or a number for each thread's gene, or one per slot of a tile.
"""

import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.cab.passes import Rows, axes_of, vary

TILE = 64  # slots of a tile: the rows of one tensor core product
WIDTH = 128  # genes of a program
PART = 64  # of D, in one product: 128 bytes of bfloat16, the widest swizzle
INTERPRET = None  # set by tests: parameters of Mosaic GPU's interpreter, which runs on CPU

LABEL, TOP = 0, 1  # genes of a slot
NUMBERS = (*Rows._fields[2:], "at_top", "elsewhere")  # numbers of a slot
SWIZZLED = (plgpu.TilingTransform((8, PART)), plgpu.SwizzleTransform(2 * PART))
TILED = plgpu.Layout.WGMMA
BY_SLOT, BY_GENE = TILED.reduce(1), TILED.reduce(0)
BY_THREAD = plgpu.Layout.WG_STRIDED((WIDTH,), vec_size=1)
# jax 0.10 asks for an index, 0.12 for none.
WHOLE = ((),) if "idx" in inspect.signature(plgpu.load).parameters else ()


class Operands(NamedTuple):
    """What a launch reads, padded: slots to whole tiles, D to whole parts, W to whole programs."""

    hidden_BxMxD: jax.Array
    embedding_DxW: jax.Array
    bias_W: jax.Array
    unknown_BxW: jax.Array | None
    ids_BxIxM: jax.Array
    numbers_BxFxM: jax.Array | None
    M: int


class Program(NamedTuple):
    """Inside a kernel: where a program works, references to its operands, its shared memory."""

    cell: jax.Array
    block: jax.Array
    genes: pl.Slice
    gene: jax.Array  # of each thread
    bias: jax.Array  # of that gene
    operands: Operands
    memory: dict

    def tiles(self) -> int:
        """Of a cell's slots."""
        return self.operands.hidden_BxMxD.shape[1] // TILE

    def slots(self, tile):
        """How many rows of a tile are slots."""
        return jnp.minimum(TILE, self.operands.M - tile * TILE)

    def describe(self, tile):
        """Fetches what the kernels read of a tile's slots: genes and numbers."""
        operands, memory = self.operands, self.memory
        for source, name in ((operands.ids_BxIxM, "ids"), (operands.numbers_BxFxM, "numbers")):
            if source is not None:
                part = source.at[self.cell, :, pl.ds(tile * TILE, TILE)]
                plgpu.copy_gmem_to_smem(part, memory[name], memory["described"])
        plgpu.barrier_wait(memory["described"])

    def logits(self, tile):
        """A tile's products of states and embeddings, no biases; one part is fetched ahead."""
        hidden, embedding = self.operands[:2]
        states, columns, fetched = (self.memory[n] for n in ("states", "columns", "fetched"))
        parts = embedding.shape[0] // PART

        def fetch(number):
            part, at = pl.ds(number * PART, PART), lax.rem(number, 2)
            of_slots = hidden.at[self.cell, pl.ds(tile * TILE, TILE), part]
            plgpu.copy_gmem_to_smem(of_slots, states.at[at], fetched.at[at])
            plgpu.copy_gmem_to_smem(embedding.at[part, self.genes], columns.at[at], fetched.at[at])

        def multiply(sums):
            fetch(jnp.int32(0))

            @pl.loop(0, parts)
            def _(number):
                pl.when(number + 1 < parts)(lambda: fetch(number + 1))
                at = lax.rem(number, 2)
                plgpu.barrier_wait(fetched.at[at])
                plgpu.wgmma(sums, states.at[at], columns.at[at])
                plgpu.wgmma_wait(0)

            return sums[...]

        return pl.run_scoped(multiply, plgpu.ACC((TILE, WIDTH), jnp.float32))

    def probabilities(self, slot):
        """P and u = 1 - P of a slot, by gene, from its products in shared memory."""
        x = load(self.memory["x"], slot, BY_THREAD) + self.bias
        P = jnp.exp(x - self.number("peak", slot)) * self.number("inverse", slot)
        return P, self.left(P, slot)

    def left(self, P, slot):
        """u by gene, from P."""
        return jnp.where(self.is_of(TOP, slot), self.number("left", slot), 1.0 - P)

    def is_of(self, which: int, slot):
        """By gene: is it this slot's true gene (LABEL), that with its highest P (TOP)?"""
        return self.gene == self.memory["ids"][which, slot]

    def tile_is(self, which: int):
        """The same for a whole tile."""
        return self.tile_of_genes() == across(load(self.memory["ids"], which, BY_SLOT), 0)

    def number(self, name: str, slot):
        """One of NUMBERS of a slot."""
        return self.memory["numbers"][NUMBERS.index(name), slot]

    def unknown(self):
        """By gene: 0 if the cell is known to hold it, else 1."""
        # The sum is a value of the kernel alone: its type names no axis of a mesh around it.
        return zeros() + load(self.operands.unknown_BxW.at[self.cell], self.genes, BY_THREAD)

    def store(self, tile, outputs, values):
        """Writes numbers by slot of a tile to as many of the outputs."""
        for output, value in zip(outputs[: len(values)], values, strict=True):
            output[self.block, self.cell, pl.ds(tile * TILE, TILE)] = value

    def tile_of_genes(self):
        """The gene of each place of a tile."""
        return self.block * WIDTH + iota((TILE, WIDTH), TILED)


def launch(kernel, operands: Operands, buffers, per_block, per_gene=()):
    """One program per cell and block of genes.

    Args:
      kernel: called with its program and the references to the outputs.
      buffers: names of those in shared memory that hold a number per slot of a tile and gene.
      per_block: types of outputs K x B x M, which programs write in whole tiles.
      per_gene: slots and type of outputs B x slots x W.
    """
    (cells, padded, _), (W,) = operands.hidden_BxMxD.shape, operands.bias_W.shape
    given = [a for a in operands[:-1] if a is not None]
    outputs = [jax.ShapeDtypeStruct((W // WIDTH, cells, padded), kind) for kind in per_block]
    outputs += [jax.ShapeDtypeStruct((cells, slots, W), kind) for slots, kind in per_gene]

    def body(*references, **memory):
        inputs = iter(references[: len(given)])
        read = Operands(*(None if a is None else next(inputs) for a in operands[:-1]), operands.M)
        kernel(_program(read, memory), references[len(given) :])

    found = plgpu.kernel(
        body,
        out_type=outputs,
        grid=(cells, W // WIDTH),
        grid_names=("cell", "block"),
        scratch_types=_memory(operands, buffers),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Lane),
        interpret=INTERPRET,
    )(*given)
    found = [a[..., : operands.M] for a in found[: len(per_block)]] + found[len(per_block) :]
    return varying(found, given)


def _memory(operands: Operands, buffers) -> dict:
    """A program's shared memory: two parts of a product, what describes a tile's slots, buffers."""
    described = {"ids": operands.ids_BxIxM, "numbers": operands.numbers_BxFxM}
    described = {name: array for name, array in described.items() if array is not None}
    memory = {
        "states": plgpu.SMEM((2, TILE, PART), jnp.bfloat16, transforms=SWIZZLED),
        "columns": plgpu.SMEM((2, PART, WIDTH), jnp.bfloat16, transforms=SWIZZLED),
        "fetched": plgpu.Barrier(num_arrivals=2, num_barriers=2),
        "described": plgpu.Barrier(num_arrivals=len(described)),
    }
    for name, array in described.items():
        memory[name] = plgpu.SMEM((array.shape[1], TILE), array.dtype)
    if "earlier" in buffers:
        tiles = operands.hidden_BxMxD.shape[1] // TILE
        memory["starts"] = plgpu.SMEM((tiles, 2, WIDTH), jnp.float32)
    return memory | {name: plgpu.SMEM((TILE, WIDTH), jnp.float32) for name in buffers}


def varying(arrays, *inputs):
    """Arrays typed as varying over the mesh axes of `shard_map` that the inputs vary over."""
    given = [a for a in jax.tree.leaves(inputs) if isinstance(a, jax.Array)]
    return jax.tree.map(lambda a: vary(a, axes_of(*given)), arrays)


def _program(operands: Operands, memory: dict) -> Program:
    cell, block = lax.axis_index("cell"), lax.axis_index("block")
    genes = pl.ds(block * WIDTH, WIDTH)
    gene = block * WIDTH + iota((WIDTH,), BY_THREAD)
    bias = load(operands.bias_W, genes, BY_THREAD)
    return Program(cell, block, genes, gene, bias, operands, memory)


def across(values, axis: int):
    """Numbers by slot (axis 0) or by gene (1), repeated over a tile."""
    return lax.broadcast_in_dim(values, (TILE, WIDTH), (axis,))


def zeros():
    """A 0 by gene."""
    array = jnp.zeros((WIDTH,), jnp.float32)
    return array if INTERPRET else plgpu.layout_cast(array, BY_THREAD)


def iota(shape, layout):
    """The places along the last axis, genes of a block."""
    array = lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    return array if INTERPRET else plgpu.layout_cast(array, layout)


def load(reference, index, layout):
    """Part of a reference in a layout. The interpreter (jax 0.10) neither knows nor needs any."""
    if INTERPRET:
        return reference[index]
    return plgpu.load(reference.at[index], *WHOLE, layout=layout, optimized=False)


def store(reference, values):
    """Writes a tile. jax 0.12 must be told that banks of shared memory may conflict."""
    if INTERPRET or not hasattr(plgpu, "store"):
        reference[...] = values
    else:
        plgpu.store(reference, values, optimized=False)
