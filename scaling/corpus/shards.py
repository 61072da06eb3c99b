"""A built corpus on disk: manifest, vocabulary, cells' annotations, token shards -> `Corpus`."""

import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp

from scaling.corpus import encodings, readers
from scaling.corpus.vocabulary import Vocabulary, summing_columns

MANIFEST, VOCABULARY = "manifest.json", "vocabulary.json"
OBS, GENES = "obs.parquet", "genes.parquet"
FORMAT = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """A built corpus, read only.

    Attributes:
      folder: where it stands.
      manifest: settings, files, counts, checksums.
      vocabulary: genes and medians.
      obs: one row a cell, in the order of the records: cell_id, dataset, row (in its file),
        split ("pool", "held_out", "duplicate"), length (tokens), total (counts), fingerprint (of
        its counts, uint64), and `annotations.COLUMNS` ("" where not known).
    """

    folder: pathlib.Path
    manifest: dict
    vocabulary: Vocabulary
    obs: pd.DataFrame

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Corpus":
        """Reads all but the tokens.

        Raises:
          ValueError: not a corpus, or of another format, or its vocabulary or annotations differ
            from the manifest.
        """
        folder = pathlib.Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder}: no corpus ({error}); build one with experiments.build_corpus"
            ) from error
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{folder} has the format {manifest.get('format')}, and {FORMAT} is read; build it "
                "again from its files"
            )
        for name, checksum in manifest["checksums"].items():
            if name in (VOCABULARY, OBS, GENES) and file_checksum(folder / name) != checksum:
                raise ValueError(f"{folder / name} is not the file that was built; build again")
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        return cls(folder, manifest, vocabulary, read_table(folder / OBS))

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        """Tokens of each shard, one cell after another, read where they are used."""
        return [self._mapped(shard["name"], "<u2", shard) for shard in self.manifest["shards"]]

    @functools.cached_property
    def _expression(self) -> list[np.ndarray]:
        """Expression of each shard, likewise."""
        shards = self.manifest["shards"]
        if not all("expression" in shard for shard in shards):
            raise ValueError(
                f"{self.folder} has no expression beside its tokens, which every model.encoding "
                "but ranks reads; build it with data.expression=True, from cells with counts"
            )
        return [self._mapped(shard["expression"], "<f4", shard) for shard in shards]

    def _mapped(self, name: str, dtype: str, shard: dict) -> np.ndarray:
        path, wanted = self.folder / name, np.dtype(dtype).itemsize * shard["tokens"]
        size = path.stat().st_size if path.exists() else None
        if size != wanted:
            raise ValueError(
                f"{path} has {size} bytes, {wanted} were written; copy the corpus again, or "
                "build it again"
            )
        return np.memmap(path, dtype, "r").view(np.ndarray) if size else np.empty(0, dtype)

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each cell, int64: its shard, and where in it the cell's tokens start and end."""
        cells = [shard["cells"] for shard in self.manifest["shards"]]
        tokens = [shard["tokens"] for shard in self.manifest["shards"]]
        if sum(cells) != len(self.obs):
            raise ValueError(
                f"{self.folder}: {sum(cells)} cells in the shards, {len(self.obs)} in {OBS}; "
                "build again"
            )
        shard = np.repeat(np.arange(len(cells)), cells)
        length = self.obs["length"].to_numpy()
        end = np.cumsum(length) - (np.cumsum(tokens) - tokens)[shard]
        return shard, end - length, end

    def cells(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rank tokens of cells, uint16 [tokens] each, read where they are used."""
        return self._of_cells(self._shards, rows)

    def _of_cells(self, shards: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        shard, start, end = self._places
        return [shards[shard[row]][start[row] : end[row]] for row in rows]

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens that a model reads of cells, int64: the genes and what stands around them."""
        return self.obs["length"].to_numpy()[rows] + len(self.vocabulary.around)

    def tokens(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Rank tokens of cells, cut to the length and padded: int32 [len(rows), length]."""
        return encodings.pad(self.cells(rows), length, self.vocabulary.around)

    def inputs(self, rows: np.ndarray, length: int, encoding: str = "ranks") -> encodings.Cells:
        """What a model of an input encoding reads of cells, see `encodings.arrange`."""
        read = None if encoding == "ranks" else self._of_cells(self._expression, rows)
        of_cells = self.cells(rows), read, length, self.vocabulary.around
        return encodings.arrange(encoding, *of_cells)

    def has_counts(self, rows: np.ndarray) -> bool:
        """Whether the cells' files have counts; those of ready tokens have not."""
        tokenised = {f["name"] for f in self.manifest["files"] if "wrong_lengths" in f}
        return not self.obs["dataset"].iloc[rows].isin(tokenised).any()

    def counts(self, rows: np.ndarray) -> sp.csr_matrix:
        """Raw counts of cells in the vocabulary's genes, read again from the source files.

        Returns:
          float32 CSR [len(rows), genes], in the order of the rows.

        Raises:
          ValueError: cells of ready tokens are among them.
        """
        rows = np.asarray(rows)
        if not self.has_counts(rows):
            raise ValueError(f"{self.folder} has cells of ready tokens, which have no counts")
        genes = read_table(self.folder / GENES)
        blocks, positions = [], []
        for file in self.manifest["files"]:
            at = np.flatnonzero(self.obs["dataset"].to_numpy()[rows] == file["name"])
            if not len(at):
                continue
            source = readers.open_source(
                file["path"],
                layer=file["matrix"].partition("layers/")[2],
                gene_column=self.manifest["settings"]["gene_column"],
                primary_only=self.manifest["settings"]["primary_only"],
            )
            ids = genes["gene_id"][genes["dataset"] == file["name"]].to_numpy()
            columns = summing_columns(ids, self.vocabulary.genes)
            wanted = self.obs["row"].to_numpy()[rows[at]]
            unique, back = np.unique(wanted, return_inverse=True)
            read = [counts @ columns for _, counts in readers.chunks(source, unique)]
            blocks.append(sp.vstack(read, format="csr")[back])
            positions.append(at)
        counts = sp.vstack(blocks, format="csr", dtype=np.float32)
        return counts[np.argsort(np.concatenate(positions))]


def read_table(path: pathlib.Path) -> pd.DataFrame:
    """A Parquet file, read by this thread alone.

    Threads of Arrow, which pandas.read_parquet starts even with use_threads=False, can outlive the
    read and abort the process at its end (https://github.com/apache/arrow/issues/34314).
    """
    file = pq.ParquetFile(path, pre_buffer=False)
    return file.read(use_threads=False).to_pandas(use_threads=False)


def file_checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
