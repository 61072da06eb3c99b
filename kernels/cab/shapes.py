"""Sizes of real heads, Geneformer's and the quickstart's; the tests and the bench share them."""

from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """A head's sizes. M is the capacity for 15 % of L masked; `masked` of them are filled."""

    L: int
    M: int
    masked: int
    V: int
    D: int


SHAPES = {
    "quickstart": Shape(L=128, M=40, masked=19, V=1_002, D=64),
    "gf-v1-10m": Shape(L=2_048, M=384, masked=307, V=25_426, D=256),
    "gf-v2-104m": Shape(L=4_096, M=728, masked=614, V=20_275, D=768),
    "gf-v2-316m": Shape(L=4_096, M=728, masked=614, V=20_275, D=1_152),
}


def draw(shape: Shape, cells: int, seed: int = 0, dtype=np.float32) -> tuple[np.ndarray, ...]:
    """Random inputs of `api.cab_loss` for full-length cells.

    Returns:
      hidden [B, M, D], embedding [V, D] and bias [V] of `dtype`, labels [B, M] int32, known [B, V].
    """
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(cells, shape.M, shape.D)).astype(dtype)
    embedding = (rng.normal(size=(shape.V, shape.D)) * 0.02).astype(dtype)
    labels = np.full((cells, shape.M), -1, np.int32)
    known = np.zeros((cells, shape.V), bool)
    for cell in range(cells):
        genes = rng.permutation(shape.V)[: shape.L]
        labels[cell, : shape.masked] = genes[: shape.masked]
        known[cell, genes[shape.masked :]] = True
    return hidden, embedding, np.zeros(shape.V, dtype), labels, known
