"""Every tensor of a Geneformer file <-> the parameter of the encoder that it is, turned as needed.

BERT of the transformers library, with a head for masked genes or for classes of cells or genes, and
the layout of the published CAB checkpoints.
"""

from collections.abc import Iterator

import numpy as np

from scaling.pretrain.model import ModelSettings

WORDS = "bert.embeddings.word_embeddings.weight"
TYPES = "bert.embeddings.token_type_embeddings.weight"
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
# Of older files: a buffer, and second names of the embedding and of its bias.
REPEATED = ("bert.embeddings.position_ids", "cls.predictions.decoder.weight",
            "cls.predictions.decoder.bias")  # fmt: skip


def table(
    model: ModelSettings, vocabulary: int, kind: str, labels: int
) -> Iterator[tuple[str, tuple[str, ...], str, tuple[int, ...]]]:
    """(their name, our path, how the array is turned, their shape) of every tensor."""
    D, F, V = model.width, model.feed_forward, vocabulary
    inside = () if kind in ("masked_lm", "cab") else ("encoder",)

    def norm(name, path):
        yield f"{name}.weight", (*path, "scale"), "same", (D,)
        yield f"{name}.bias", (*path, "bias"), "same", (D,)

    def dense(name, path, rows, columns):
        yield f"{name}.weight", (*path, "kernel"), "turned", (rows, columns)
        yield f"{name}.bias", (*path, "bias"), "same", (rows,)

    yield WORDS, (*inside, "embedding"), "same", (V, D)
    positions = "bert.embeddings.position_embeddings.weight"
    yield positions, (*inside, "positions"), "same", (model.length, D)
    yield TYPES, (*inside, "token_type"), "first", (1, D)
    yield from norm("bert.embeddings.LayerNorm", (*inside, "norm"))
    for n in range(model.layers):
        layer, at = f"bert.encoder.layer.{n}", (*inside, f"layer_{n}")
        for part in ("query", "key", "value"):
            name, path = f"{layer}.attention.self.{part}", (*at, "attention", part)
            yield f"{name}.weight", (*path, "kernel"), "to_heads", (D, D)
            yield f"{name}.bias", (*path, "bias"), "heads", (D,)
        name, path = f"{layer}.attention.output.dense", (*at, "attention", "out")
        yield f"{name}.weight", (*path, "kernel"), "from_heads", (D, D)
        yield f"{name}.bias", (*path, "bias"), "same", (D,)
        yield from norm(f"{layer}.attention.output.LayerNorm", (*at, "attention_norm"))
        yield from dense(f"{layer}.intermediate.dense", (*at, "expand"), F, D)
        yield from dense(f"{layer}.output.dense", (*at, "contract"), D, F)
        yield from norm(f"{layer}.output.LayerNorm", (*at, "output_norm"))
    if kind == "cells":
        yield from dense(POOLER[0].removesuffix(".weight"), ("pooler",), D, D)
    if kind in ("cells", "genes"):
        yield from dense("classifier", ("logits",), labels, D)
        return
    head = "" if kind == "cab" else "cls.predictions."
    yield from dense(f"{head}transform.dense", ("dense",), D, D)
    yield from norm(f"{head}transform.LayerNorm", ("head_norm",))
    yield f"{head}bias", ("bias",), "same", (V,)


def ours(array: np.ndarray, form: str, model: ModelSettings) -> np.ndarray:
    """A tensor of theirs, as our parameter."""
    heads = model.heads, model.width // model.heads
    match form:
        case "turned":
            return array.T
        case "to_heads":
            return array.T.reshape(model.width, *heads)
        case "from_heads":
            return array.T.reshape(*heads, model.width)
        case "heads":
            return array.reshape(heads)
        case "first":
            return array[0]
    return array


def theirs(leaf: np.ndarray, form: str) -> np.ndarray:
    """A parameter of ours with its numbers in their order, of any shape."""
    match form:
        case "turned":
            return leaf.T
        case "to_heads":
            return leaf.reshape(leaf.shape[0], -1).T
        case "from_heads":
            return leaf.reshape(-1, leaf.shape[-1]).T
    return leaf
