"""Genes of cells and their expression -> what an encoder reads: tokens, and a value beside each."""

from typing import NamedTuple

import numpy as np

ENCODINGS = ("ranks", "bins", "projection", "counts")
BINS = 51  # scGPT's: 0 of what is no gene, 1 to 50 of genes


class Cells(NamedTuple):
    """Cells as an encoder reads them, padded. Arrays of NumPy or JAX.

    Attributes:
      tokens_BxL: int32; genes, and what stands around them.
      values_BxL: float32, of each gene, 0 of what is none; None in the encoding "ranks".
    """

    tokens_BxL: np.ndarray
    values_BxL: np.ndarray | None = None

    def at(self, rows) -> "Cells":
        """Some of the cells."""
        return Cells(*(None if array is None else array[rows] for array in self))


def arrange(
    encoding: str,
    tokens: list[np.ndarray],
    expression: list[np.ndarray] | None,
    length: int,
    around: tuple[int, ...] = (),
) -> Cells:
    """Cells in an input encoding. All read the same genes: as many of the best ranks as fit.

    Args:
      encoding: "ranks", genes by rank, without values (Geneformer); "bins", by rank, the value is
        the number of the bin (scGPT, Cui et al. 2024); "projection", by rank, the value is the
        expression (scFoundation, Hao et al. 2024); "counts", the same value, the genes in the fixed
        order of the vocabulary.
      tokens: of each cell's genes by falling score, uint16 [genes].
      expression: log1p of counts per 10,000 of the same genes, float32 [genes] of each cell; not
        read for "ranks".
      length: to which they are cut and padded, `around` included.
      around: tokens before and after the genes of each cell, or none.

    Raises:
      ValueError: no such encoding, or no expression for one that reads it.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"model.encoding is {encoding!r}; give one of {ENCODINGS}")
    if encoding == "ranks":
        return stand(encoding, tokens, None, length, around)
    if expression is None:
        raise ValueError(
            f"model.encoding={encoding} reads counts, and ready tokens have none; give cells with "
            "counts"
        )
    values = [bins(of_cell) for of_cell in expression] if encoding == "bins" else expression
    return stand(encoding, tokens, values, length, around)


def stand(
    encoding: str,
    tokens: list[np.ndarray],
    values: list[np.ndarray] | None,
    length: int,
    around: tuple[int, ...],
) -> Cells:
    """Genes and their values, best rank first, cut, put in the encoding's order, and padded."""
    if values is None:
        return Cells(pad(tokens, length, around))
    if encoding == "counts":
        orders = [np.argsort(of_cell[: length - len(around)]) for of_cell in tokens]
        tokens, values = (
            [of_cell[order] for of_cell, order in zip(of, orders, strict=True)]
            for of in (tokens, values)
        )
    nothing = (0,) * len(around)
    return Cells(pad(tokens, length, around), pad(values, length, nothing, np.float32))


def by_cell(array: np.ndarray | None, lengths: np.ndarray) -> list[np.ndarray] | None:
    """Tokens or expression of cells, one after another, of each cell by itself; None stays."""
    return None if array is None else np.split(array, np.cumsum(lengths)[:-1])


def bins(expression: np.ndarray) -> np.ndarray:
    """Number of each gene's bin, 1 to 50, by the quantiles of the cell's own genes.

    scGPT's bins, but for ties: a value that equals some of the 50 quantiles, the least and the
    greatest value among them, may go to any bin beside these, of which scGPT draws one for each
    gene; here all genes of that value go to the middle one.

    Args:
      expression: of all genes of a cell, [genes], above 0.

    Returns:
      int64 [genes].
    """
    if not len(expression):
        return np.empty(0, np.int64)
    edges = np.quantile(expression, np.linspace(0, 1, BINS - 1))
    below, up_to = (np.searchsorted(edges, expression, side) for side in ("left", "right"))
    return (below + up_to + 1) // 2


def pad(
    cells: list[np.ndarray], length: int, around: tuple[int, ...] = (), dtype: type = np.int32
) -> np.ndarray:
    """Cells of one length.

    Args:
      cells: gene tokens, or values of genes, [genes] each.
      length: to which they are cut and padded with 0, `around` included.
      around: what stands before and after the genes of each cell, or none.
      dtype: of the result.

    Returns:
      [cells, length].
    """
    padded = np.zeros((len(cells), length), dtype)
    first, most = len(around[:1]), length - len(around)
    for row, cell in zip(padded, cells, strict=True):
        end = first + min(len(cell), most)
        row[first:end] = cell[:most]
        if around:
            row[0], row[end] = around
    return padded
