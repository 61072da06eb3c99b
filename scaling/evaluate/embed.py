"""Checkpoint + cells -> embeddings of cells and of genes."""

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from scaling.corpus import readers
from scaling.corpus.encodings import Cells
from scaling.corpus.shards import Corpus
from scaling.corpus.tokens import PAD, SPECIAL
from scaling.evaluate.held_out import POOLS
from scaling.pretrain import sharding
from scaling.pretrain.model import ModelSettings, RankEncoder

LENGTHS = (*range(64, 512, 64), *range(512, 4_096, 128))  # that cells are padded to, or the longest
AT_ONCE = 8  # batches on one CPU, at most


@functools.partial(jax.jit, static_argnames=("model", "layer", "special", "pool"))
def _embed(params: dict, cells: Cells, model, layer: int, special: int, pool: str):
    tokens_BxL, states_BxLxD = cells.tokens_BxL, _states(params, cells, model, layer)
    if pool == "cls":
        return states_BxLxD[:, 0]
    gene_BxL = tokens_BxL >= special
    total_BxD = jnp.where(gene_BxL[..., None], states_BxLxD, 0.0).sum(1)
    return total_BxD / jnp.maximum(gene_BxL.sum(1), 1)[:, None]


@functools.partial(jax.jit, static_argnames=("model", "layer"))
def _embed_genes(params: dict, cells: Cells, model, layer: int):
    """Sums of states by token, [V, D], and in how many positions it stands, [V]."""
    tokens_BxL, states_BxLxD = cells.tokens_BxL, _states(params, cells, model, layer)
    vocabulary = len(params["bias"])
    states_PxD = states_BxLxD.reshape(-1, states_BxLxD.shape[-1])
    sums_VxD = jax.ops.segment_sum(states_PxD, tokens_BxL.reshape(-1), vocabulary)
    return sums_VxD, jnp.bincount(tokens_BxL.reshape(-1), length=vocabulary)


def _states(params: dict, cells: Cells, model, layer: int) -> jax.Array:
    encoder, read = RankEncoder(model, len(params["bias"])), (cells.tokens_BxL, None)
    states = encoder.apply({"params": params}, *read, cells.values_BxL, method="encode")
    return states[layer].astype(jnp.float32)


def embed_cells(
    params: dict,
    model: ModelSettings,
    layer: int,
    blocks: Iterable[Cells],
    special: int,
    pool: str = "genes",
) -> np.ndarray:
    """Embeds cells, on all local devices.

    A cell's embedding does not depend on the cells beside it nor on how they are cut into blocks.

    Args:
      params: of a RankEncoder.
      model: its settings.
      layer: -1 the last of N layers, -2 the one before it, ...; 0 the embedding.
      blocks: n cells of length L each, in the model's encoding.
      special: tokens that are no genes; the first gene's token follows them.
      pool: "genes", the mean of the layer's states over the genes' positions (Geneformer); "cls",
        the state of the first position, where the tokens begin with `<cls>`.

    Returns:
      float32 [sum of n, D].

    Raises:
      ValueError: a layer or pool that there is not.
    """
    if pool not in POOLS or (pool == "cls" and special <= len(SPECIAL)):
        raise ValueError(
            f"the pool is {pool!r} and the vocabulary has {special} special tokens; give one "
            f"of {POOLS}, 'cls' only where cells begin with <cls>"
        )
    check_layer(model, layer)
    fixed = {"model": model, "layer": layer, "special": special, "pool": pool}
    with everywhere(params) as (params, mesh):
        embedded = []
        for cells in blocks:
            found_NxD = np.empty((len(cells.tokens_BxL), model.width), np.float32)
            of_batch = functools.partial(_embed, params, **fixed)
            for rows, of_rows in jax.device_get(list(_of_batches(of_batch, cells, mesh))):
                found_NxD[rows] = of_rows[: len(rows)]
            embedded.append(found_NxD)
    return np.concatenate(embedded)


def embed_genes(
    params: dict, model: ModelSettings, layer: int, blocks: Iterable[Cells]
) -> tuple[np.ndarray, np.ndarray]:
    """Embeds genes: the mean of a layer's states where the gene stands, over cells (Geneformer).

    Args:
      params, model, layer, blocks: see `embed_cells`. Beside these contextual embeddings there is
        the input table, `params["embedding"]`.

    Returns:
      float32 [V, D], NaN where no cell has the token; int64 [V], cells that have it.
    """
    check_layer(model, layer)
    with everywhere(params) as (params, mesh):
        sums_VxD = np.zeros((len(params["bias"]), model.width))
        cells_V = np.zeros(len(sums_VxD), np.int64)
        for cells in blocks:
            of_batch = functools.partial(_embed_genes, params, model=model, layer=layer)
            for _, (of_batch_VxD, in_batch_V) in _of_batches(of_batch, cells, mesh):
                sums_VxD += np.asarray(of_batch_VxD)
                cells_V += np.asarray(in_batch_V, np.int64)
    cells_V[PAD] = 0
    with np.errstate(invalid="ignore"):
        return (sums_VxD / np.where(cells_V, cells_V, np.nan)[:, None]).astype(np.float32), cells_V


def _of_batches(of_batch: Callable, cells: Cells, mesh: Mesh) -> Iterator[tuple]:
    """Rows and a function's value of each batch of cells."""

    def of_rows(batch: tuple[np.ndarray, Cells]) -> tuple:
        return batch[0], of_batch(batch[1])

    told = {"desc": "embedding", "unit": "cells", "leave": False, "delay": 5}
    with tqdm(total=len(cells.tokens_BxL), **told) as bar, _mapping(mesh) as mapped:
        for rows, found in mapped(of_rows, by_length(cells, mesh)):
            yield rows, found
            bar.update(len(rows))


@contextlib.contextmanager
def _mapping(mesh: Mesh) -> Iterator[Callable]:
    """`map`, of several batches at a time where the device is one CPU.

    There no operation on a batch fills all cores for long.
    """
    if jax.default_backend() != "cpu" or mesh.size > 1:
        yield map
        return

    def waited(function: Callable, batch):
        with jax.set_mesh(mesh):  # each thread has its own
            return jax.block_until_ready(function(batch))

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count(), AT_ONCE)) as pool:
        yield lambda function, batches: pool.map(functools.partial(waited, function), batches)


def tokens_of_batch() -> int:
    """Positions that a device gets at a time: enough to fill it."""
    return 2_048 if jax.default_backend() == "cpu" else 65_536


def check_layer(model: ModelSettings, layer: int) -> None:
    """Refuses a layer that a model has not."""
    if not -model.layers - 1 <= layer <= model.layers:
        raise ValueError(
            f"layer {layer} of a model of {model.layers} layers; give one from {-model.layers - 1} "
            f"to {model.layers}, 0 being the embedding and -1 the last"
        )


@contextlib.contextmanager
def everywhere(params: dict) -> Iterator[tuple[dict, Mesh]]:
    """The weights on all local devices, and their mesh."""
    devices = jax.local_devices()
    mesh = sharding.make_mesh(sharding.DeviceSettings(), len(devices), devices)
    with jax.set_mesh(mesh):
        yield jax.device_put(params, NamedSharding(mesh, PartitionSpec())), mesh


def by_length(cells: Cells, mesh: Mesh) -> Iterator[tuple[np.ndarray, Cells]]:
    """Rows and batches of cells of about one length, filled with empty cells.

    A cell's own length decides what it is padded to, and that decides how many are in a batch.
    """
    length_N, longest = (cells.tokens_BxL != PAD).sum(1), cells.tokens_BxL.shape[1]
    padded = np.array([length for length in LENGTHS if length < longest] + [longest])
    padded_N = padded[np.searchsorted(padded, length_N)]
    for length in np.unique(padded_N):
        rows = np.flatnonzero(padded_N == length)
        size = mesh.size * max(1, tokens_of_batch() // length)
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            empty = [(0, size - len(some)), (0, 0)]
            batch = jax.tree.map(lambda of: np.pad(of[some, :length], empty), cells)  # noqa: B023
            yield some, sharding.shard_batch(batch, mesh)


def embed_corpus(
    params: dict,
    model: ModelSettings,
    layer: int,
    corpus: Corpus,
    rows: np.ndarray,
    pool: str = "genes",
) -> np.ndarray:
    """Embeddings of a corpus's cells, float32 [len(rows), D]."""
    starts = range(0, len(rows), readers.CHUNK_CELLS)
    read = model.length, model.encoding
    bar = tqdm(starts, "blocks", leave=False, disable=len(starts) < 2)
    blocks = (corpus.inputs(rows[s : s + readers.CHUNK_CELLS], *read) for s in bar)
    return embed_cells(params, model, layer, blocks, len(corpus.vocabulary.special), pool)
