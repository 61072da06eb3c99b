"""One piece of a file's cells -> its totals, fingerprints, sketch of medians, and token shard.

Each result is a file of its own in the folder, named by the piece's number, that is there when it
is whole; so any process may do any piece, and what is done is not done again.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import uuid
from collections.abc import Iterator

import numba
import numpy as np
import scipy.sparse as sp

from scaling.corpus import identical, ranks, readers, ready_tokens
from scaling.corpus.medians import Sketch
from scaling.corpus.stores import tokenised
from scaling.corpus.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Piece:
    """Cells that one token shard holds.

    Attributes:
      number: of the piece in the corpus.
      dataset: name of its file.
      rows: ascending rows of the file, int64.
      pool: bool [rows], cells that shape the vocabulary.
    """

    number: int
    dataset: str
    rows: np.ndarray
    pool: np.ndarray

    def scanned(self, folder: pathlib.Path) -> pathlib.Path:
        """File with totals, fingerprints and the sketch."""
        return folder / f"scan-{self.number:05d}.npz"

    def ranked(self, folder: pathlib.Path) -> pathlib.Path:
        """File with what is known of the shard."""
        return folder / f"ranks-{self.number:05d}.npz"

    @property
    def shard(self) -> str:
        """Name of the token shard."""
        return f"tokens-{self.number:05d}.uint16"

    @property
    def expression(self) -> str:
        """Name of the file with the expression of the shard's genes."""
        return f"expression-{self.number:05d}.float32"


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be done with a file's pieces.

    Attributes:
      source: the file.
      folder: gets the results.
      ids: gene ids of its columns, None where a column has none.
      scan: whether totals and fingerprints are wanted.
      sketch_of: genes whose medians are sketched, or None.
      vocabulary: to rank by, or None.
      expression: whether that of the ranked genes is wanted beside them.
    """

    source: readers.Source
    folder: pathlib.Path
    ids: np.ndarray
    scan: bool
    sketch_of: tuple[str, ...] | None
    vocabulary: Vocabulary | None
    expression: bool

    @functools.cached_property
    def of_file(self) -> tuple[np.ndarray | None, np.ndarray]:
        """Places of the columns' genes among the file's own, and the hashes of these.

        Without places the hashes are the columns', as no gene has two.
        """
        own = sorted({i for i in self.ids if i is not None})
        if len(own) == sum(i is not None for i in self.ids):
            return None, identical.gene_hashes(self.ids)
        return positions(self.ids, own), identical.gene_hashes(own)

    @functools.cached_property
    def in_sketch(self) -> np.ndarray:
        """Places of the columns' genes among those that are sketched."""
        return positions(self.ids, self.sketch_of)

    @functools.cached_property
    def in_vocabulary(self) -> np.ndarray:
        """Places of the columns' genes in the vocabulary."""
        return positions(self.ids, self.vocabulary.genes)


def read(piece: Piece, work: Work) -> None:
    """Reads a piece once and writes what is wanted of it."""
    shard = None if work.vocabulary is None else _Shard(piece, work)
    try:
        found = (_read_tokens if work.source.tokenised else _read_counts)(piece, work, shard)
        if work.scan:
            _save(piece.scanned(work.folder), found)
        if shard is not None:
            _save(piece.ranked(work.folder), shard.whole())
    finally:
        if shard is not None:
            shard.close()


def _read_counts(piece: Piece, work: Work, shard: "_Shard | None") -> dict[str, np.ndarray]:
    totals, prints, of_columns, done = [], [], np.zeros(len(work.ids)), 0
    sketch = None if work.sketch_of is None else Sketch(len(work.sketch_of), len(piece.rows))
    for rows, counts in readers.chunks(work.source, piece.rows):
        total = np.asarray(counts.sum(1)).ravel()
        totals.append(total)
        if work.scan:
            _add_to_columns(counts.indices, counts.data, of_columns)
            places, hashes = work.of_file
            own = counts if places is None else select(counts, places, len(hashes))
            prints.append(identical.fingerprints(own, hashes))
        if sketch is not None:
            pool = np.flatnonzero(piece.pool[done : done + len(rows)])
            of_pool = select(counts[pool], work.in_sketch, len(work.sketch_of))
            sketch.add(of_pool, total[pool])
        if shard is not None:
            genes = work.vocabulary
            mapped = select(counts, work.in_vocabulary, len(genes.genes))
            shard.write(*ranked(mapped, total, genes, work.expression))
        done += len(rows)
    found = {"totals": np.concatenate(totals), "columns": of_columns}
    if work.scan:
        found["fingerprints"] = np.concatenate(prints)
    if sketch is not None:
        found["places"], found["cells"] = sketch.sparse()
    return found


def _read_tokens(piece: Piece, work: Work, shard: "_Shard") -> dict[str, np.ndarray]:
    """Of ready tokens, whose cells have no counts; `wrong_lengths` are stated but not true."""
    prints, wrong, path, genes = [], 0, work.source.path, work.vocabulary
    stated = work.source.obs.get("length")
    for rows, stored, lengths in tokenised.chunks(path, piece.rows, readers.CHUNK_CELLS):
        if stated is not None:
            wrong += int((stated.to_numpy()[rows] != lengths).sum())
        tokens, lengths = ready_tokens.genes_alone(path, rows, stored, lengths, genes)
        prints.append(ready_tokens.fingerprints(tokens, lengths, genes))
        shard.write(tokens, lengths, None)
    prints = np.concatenate(prints)
    return {"totals": np.full(len(prints), np.nan), "fingerprints": prints, "wrong_lengths": wrong}


def ranked(
    counts_NxG: sp.csr_matrix, totals_N: np.ndarray, genes: Vocabulary, expression: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Tokens, lengths and, where it is wanted, expression of cells."""
    special = len(genes.special)
    tokens, lengths = ranks.rank_tokens(counts_NxG, totals_N, genes.medians, special)
    beside = ranks.expression(counts_NxG, totals_N, tokens, special) if expression else None
    return tokens, lengths, beside


class _Shard:
    """Tokens and expression on their way to the files of a piece."""

    def __init__(self, piece: Piece, work: Work):
        self._tokens, self._lengths = _File(work.folder / piece.shard, "<u2"), []
        self._expression = None
        if work.expression:
            self._expression = _File(work.folder / piece.expression, "<f4")

    def write(
        self, tokens: np.ndarray, lengths: np.ndarray, expression: np.ndarray | None
    ) -> None:
        self._tokens.write(tokens)
        self._lengths.append(lengths)
        if self._expression is not None:
            self._expression.write(expression)

    def whole(self) -> dict[str, np.ndarray]:
        """Puts the files in their places and says what is known of them."""
        known = {"lengths": np.concatenate(self._lengths), "checksum": self._tokens.whole()}
        if self._expression is not None:
            known["checksum_of_expression"] = self._expression.whole()
        return known

    def close(self) -> None:
        for file in filter(None, (self._tokens, self._expression)):
            file.close()


class _File:
    """An array on its way to a file, which is there when it is whole."""

    def __init__(self, path: pathlib.Path, dtype: str):
        self._path, self._partial, self._dtype = path, _unfinished(path), dtype
        self._file, self._digest = open(self._partial, "wb"), hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        content = array.astype(self._dtype, copy=False).tobytes()
        self._file.write(content)
        self._digest.update(content)

    def whole(self) -> str:
        """Puts the file in its place; its SHA-256, hex."""
        self._file.close()
        os.replace(self._partial, self._path)
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def encode(
    source: readers.Source, ids: np.ndarray, genes: Vocabulary, expression: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]]:
    """Rank tokens of a file's cells, chunk by chunk.

    Args:
      source: the file.
      ids: gene ids of its columns, None where a column has none; without meaning for ready tokens.
      genes: the vocabulary.
      expression: whether it is wanted too.

    Yields:
      rows [n], tokens uint16 (cells one after another), lengths [n], and the genes' expression,
      see `ranks.expression`; None of ready tokens, and where it is not wanted.
    """
    if source.tokenised:
        path, every = source.path, np.arange(len(source.obs))
        for rows, stored, lengths in tokenised.chunks(path, every, readers.CHUNK_CELLS):
            yield rows, *ready_tokens.genes_alone(path, rows, stored, lengths, genes), None
        return
    places = positions(ids, genes.genes)
    for rows, counts in readers.chunks(source):
        mapped = select(counts, places, len(genes.genes))
        totals = np.asarray(counts.sum(1)).ravel()
        yield rows, *ranked(mapped, totals, genes, expression)


def _save(path: pathlib.Path, arrays: dict) -> None:
    partial = _unfinished(path)
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    os.replace(partial, path)


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    """A name that no other process takes; such files of killed processes are swept at the end."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def positions(ids: np.ndarray, genes) -> np.ndarray:
    """Place of each column's gene among the genes, int64 [len(ids)]; -1 where it has none."""
    position = {gene: k for k, gene in enumerate(genes)}
    return np.array([position.get(i, -1) for i in ids], np.int64)


def select(counts: sp.csr_matrix, places: np.ndarray, genes: int) -> sp.csr_matrix:
    """Counts [n, columns] -> [n, genes], columns of one gene summed, genes in any order."""
    chosen = sp.csr_matrix((counts.shape[0], genes))
    arrays = counts.indptr, counts.indices, counts.data, places
    chosen.data, chosen.indices, chosen.indptr = _select(*arrays)
    if np.bincount(places[places >= 0], minlength=1).max() > 1:
        chosen.sum_duplicates()
    return chosen


@numba.njit(cache=True, nogil=True)
def _add_to_columns(indices, data, sums):
    for k in range(len(data)):
        sums[indices[k]] += data[k]


@numba.njit(cache=True, nogil=True)
def _select(indptr, indices, data, places):
    """The entries whose columns have a place, and that place: data, indices, indptr."""
    kept, ends = 0, np.zeros(len(indptr), np.int32)
    for cell in range(len(indptr) - 1):
        for k in range(indptr[cell], indptr[cell + 1]):
            kept += places[indices[k]] >= 0
        ends[cell + 1] = kept
    place, value, at = np.empty(kept, np.int32), np.empty(kept, np.float64), 0
    for k in range(indptr[0], indptr[-1]):
        if places[indices[k]] >= 0:
            place[at], value[at] = places[indices[k]], data[k]
            at += 1
    return value, place, ends
