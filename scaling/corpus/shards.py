"""A built corpus on disk: manifest, vocabulary, cells' annotations, token shards -> `Corpus`."""

import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np
import pandas as pd
import scipy.sparse as sp
from array_record.python import array_record_data_source, array_record_module

from scaling.corpus import readers
from scaling.corpus.vocabulary import Vocabulary, summing_columns

MANIFEST, VOCABULARY = "manifest.json", "vocabulary.json"
OBS, GENES = "obs.parquet", "genes.parquet"


class ShardWriter:
    """Writes cells' tokens to `tokens-00000.array_record`, ... of a folder."""

    def __init__(self, folder: pathlib.Path, cells_per_shard: int):
        self._folder, self._limit = folder, cells_per_shard
        self._writer, self._cells = None, 0
        self.names: list[str] = []

    def write(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Appends cells; tokens uint16, one cell after another, lengths int64 [cells].

        A cell without tokens is left out.
        """
        for cell in np.split(tokens.astype("<u2"), np.cumsum(lengths)[:-1]):
            if not len(cell):
                continue
            if self._writer is None or self._cells == self._limit:
                self.close()
                self.names.append(f"tokens-{len(self.names):05d}.array_record")
                path = str(self._folder / self.names[-1])
                self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
                self._cells = 0
            self._writer.write(cell.tobytes())
            self._cells += 1

    def close(self) -> None:
        """Finishes the open shard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A built corpus, read only.

    Attributes:
      folder: where it stands.
      manifest: settings, files, counts, checksums.
      vocabulary: genes and medians.
      obs: one row a cell, in the order of the records: cell_id, dataset, row (in its file),
        split ("pool", "held_out", "duplicate"), length (tokens), total (counts), fingerprint,
        cell_type, donor, batch ("" where not known).
    """

    folder: pathlib.Path
    manifest: dict
    vocabulary: Vocabulary
    obs: pd.DataFrame

    @classmethod
    def open(cls, folder: pathlib.Path) -> "Corpus":
        """Reads all but the tokens.

        Raises:
          ValueError: not a corpus, or its vocabulary or annotations differ from the manifest.
        """
        folder = pathlib.Path(folder)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder}: no corpus ({error}); build one with experiments.build_corpus"
            ) from error
        for name, checksum in manifest["checksums"].items():
            if name in (VOCABULARY, OBS, GENES) and file_checksum(folder / name) != checksum:
                raise ValueError(f"{folder / name} is not the file that was built; build again")
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        return cls(folder, manifest, vocabulary, pd.read_parquet(folder / OBS))

    @functools.cached_property
    def _records(self) -> array_record_data_source.ArrayRecordDataSource:
        paths = [str(self.folder / n) for n in self.manifest["checksums"] if n.startswith("tokens")]
        records = array_record_data_source.ArrayRecordDataSource(paths)
        if len(records) != len(self.obs):
            raise ValueError(
                f"{self.folder}: {len(records)} cells in the shards, {len(self.obs)} in {OBS}; "
                "build again"
            )
        return records

    def tokens(self, rows: np.ndarray, length: int) -> np.ndarray:
        """Rank tokens of cells, cut to the length and padded: int32 [len(rows), length]."""
        tokens = np.zeros((len(rows), length), np.int32)
        for k, record in enumerate(self._records.__getitems__([int(r) for r in rows])):
            cell = np.frombuffer(record, "<u2")[:length]
            tokens[k, : len(cell)] = cell
        return tokens

    def counts(self, rows: np.ndarray) -> sp.csr_matrix:
        """Raw counts of cells in the vocabulary's genes, read again from the source files.

        Returns:
          float32 CSR [len(rows), genes], in the order of the rows.
        """
        rows = np.asarray(rows)
        genes = pd.read_parquet(self.folder / GENES)
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


def file_checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
