"""Checkpoint + cells -> one embedding per cell, as an array or in an `.h5ad`."""

import functools
import pathlib
import shutil
from collections.abc import Iterable

import anndata
import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from scaling.corpus import coverage, pieces, readers
from scaling.corpus.shards import Corpus, pad
from scaling.corpus.tokens import PAD
from scaling.corpus.vocabulary import Vocabulary
from scaling.pretrain import sharding
from scaling.pretrain.model import ModelSettings, RankEncoder

TOKENS = 16_384  # of a batch
LENGTHS = (64, 128, 256, 384, 512, 768, 1_024, 1_536)  # that cells are padded to, or the longest


@functools.partial(jax.jit, static_argnames=("model", "layer", "special"))
def _embed(params: dict, tokens_BxL: jax.Array, model, layer: int, special: int) -> jax.Array:
    encoder = RankEncoder(model, len(params["bias"]))
    states = encoder.apply({"params": params}, tokens_BxL, method="encode")
    real_BxL = tokens_BxL >= special
    states_BxLxD = states[layer].astype(jnp.float32)
    total_BxD = jnp.where(real_BxL[..., None], states_BxLxD, 0.0).sum(1)
    return total_BxD / jnp.maximum(real_BxL.sum(1), 1)[:, None]


def embed_tokens(
    params: dict, model: ModelSettings, layer: int, blocks: Iterable[np.ndarray], special: int
) -> np.ndarray:
    """Embeds cells: the mean over the genes' positions of a layer's states (Geneformer).

    Args:
      params: of a RankEncoder.
      model: its settings.
      layer: -1 the last of N layers, -2 the one before it, ...; 0 the embedding.
      blocks: int32 rank tokens, [n, L] each.
      special: tokens that are no genes; the first gene's token follows them.

    Returns:
      float32 [sum of n, D].
    """
    if not -model.layers - 1 <= layer <= model.layers:
        raise ValueError(f"layer {layer} of a model of {model.layers} layers; see evaluate.layer")
    devices = jax.local_devices()
    mesh = sharding.make_mesh(sharding.DeviceSettings(), len(devices), devices)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        embed = functools.partial(_embed, params, model=model, layer=layer, special=special)
        return np.concatenate([_by_length(embed, block, model.width, mesh) for block in blocks])


def _by_length(embed, tokens_NxL: np.ndarray, width: int, mesh: Mesh) -> np.ndarray:
    """Batches of cells of about one length; a cell's own length decides what it is padded to."""
    length_N, longest = (tokens_NxL != PAD).sum(1), tokens_NxL.shape[1]
    padded = np.array([length for length in LENGTHS if length < longest] + [longest])
    found, parts = [], []
    for length in padded[np.unique(np.searchsorted(padded, length_N))]:
        rows = np.flatnonzero(padded[np.searchsorted(padded, length_N)] == length)
        size = -(-max(1, TOKENS // length) // mesh.size) * mesh.size
        for start in range(0, len(rows), size):
            parts.append(rows[start : start + size])
            batch = np.full((size, length), PAD, np.int32)
            batch[: len(parts[-1])] = tokens_NxL[parts[-1], :length]
            found.append(embed(sharding.shard_batch(batch, mesh)))
    embedding = np.empty((len(tokens_NxL), width), np.float32)
    for rows, of_rows in zip(parts, jax.device_get(found), strict=True):
        embedding[rows] = of_rows[: len(rows)]
    return embedding


def embed_corpus(
    params: dict, model: ModelSettings, layer: int, corpus: Corpus, rows: np.ndarray
) -> np.ndarray:
    """Embeddings of a corpus's cells, float32 [len(rows), D]."""
    starts = range(0, len(rows), readers.CHUNK_CELLS)
    blocks = (corpus.tokens(rows[s : s + readers.CHUNK_CELLS], model.length) for s in starts)
    return embed_tokens(params, model, layer, blocks, len(corpus.vocabulary.special))


def embed_file(
    params: dict,
    model: ModelSettings,
    layer: int,
    vocabulary: Vocabulary,
    source: readers.Source,
    ids: np.ndarray,
    out: pathlib.Path,
    name: str,
) -> tuple[np.ndarray, float | None]:
    """Writes a copy of an `.h5ad` with the embeddings in `.obsm["X_<name>"]`.

    Of another store: an `.h5ad` with the cells' annotations and embeddings, without counts. Cells
    without a gene of the vocabulary get NaN. The input stays as it is.

    Args:
      params, model, layer: see `embed_tokens`.
      vocabulary: that the model was trained with.
      source: the file, opened.
      ids: gene ids of its columns.
      out: the copy; must not exist.
      name: of the embedding.

    Returns:
      The embeddings, float32 [cells, D]; the share of the file's counts in the vocabulary, None of
      cells of ready tokens.

    Raises:
      ValueError: the copy exists, or the vocabulary covers too little of the file.
    """
    if out.exists() or not out.parent.is_dir():
        state = "exists" if out.exists() else "lies in a folder that does not exist"
        raise ValueError(f"{out} {state}; name another --out")
    if not name or "/" in name:
        raise ValueError(f"{name!r} cannot name an embedding; give a --name without '/'")

    covered = {"counts_covered": None}
    if not source.tokenised:
        covered = coverage.report(ids, coverage.gene_totals(source), vocabulary)
        coverage.check(source, covered, vocabulary)
    embedding = np.full((len(source.obs), model.width), np.nan, np.float32)
    with tqdm(total=len(embedding), desc=f"embedding {source.name}", unit="cells") as bar:
        for rows, tokens, lengths in pieces.encode(source, ids, vocabulary):
            cells = np.split(tokens, np.cumsum(lengths)[:-1])
            block, real = pad(cells, model.length, vocabulary.around), lengths > 0
            if real.any():
                blocks, special = [block[real]], len(vocabulary.special)
                embedding[rows[real]] = embed_tokens(params, model, layer, blocks, special)
            bar.update(len(rows))
    partial = out.with_name(out.name + ".partial")
    try:
        if source.is_h5ad:
            shutil.copyfile(source.path, partial)
        else:
            anndata.AnnData(obs=source.obs).write_h5ad(partial)
        with h5py.File(partial, "r+") as file:
            key = f"X_{name}"
            group = file.require_group("obsm")
            if key in group:
                raise ValueError(
                    f"{source.path} has .obsm[{key!r}] already; give another --name"
                )
            anndata.io.write_elem(group, key, embedding)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)
    return embedding, covered["counts_covered"]
