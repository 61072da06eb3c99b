"""Gene names of files -> one vocabulary of gene ids with their medians, and back from disk."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus.tokens import END, SPECIAL, START

TARGET_SUM = 10_000.0  # counts of a cell are scaled to this total
ENSEMBL = re.compile(r"(ENS[A-Z]*G[R]?\d+)(\.\d+)?$")
SPECIES = re.compile(r"ENS[A-Z]*?G(?=R?\d)")  # ENSG human, ENSMUSG mouse; R marks a region of Y


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Genes that have a token, with the factor that each is divided by before ranking.

    Attributes:
      genes: gene ids; token of genes[k] is len(special) + k.
      medians: float64 [genes], median over cells of the non-zero c/n * 10,000 (Theodoris et al.
        2023), counts per 10,000.
      special: tokens that are no genes, by id: `<pad>` 0, `<mask>` 1, and what else a model has.
      renamed: retired gene id -> the gene that has its counts today.
    """

    genes: tuple[str, ...]
    medians: np.ndarray
    special: tuple[str, ...] = SPECIAL
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if len(self) > np.iinfo(np.uint16).max + 1:
            raise ValueError(
                f"{len(self.genes)} genes do not fit the 16-bit tokens; raise data.min_cells"
            )
        if len(self.genes) != len(self.medians) or len(set(self.genes)) != len(self.genes):
            raise ValueError("a vocabulary needs distinct genes and one median for each")
        if not (np.isfinite(self.medians).all() and (self.medians > 0).all()):
            raise ValueError("a vocabulary's medians must be finite and above 0")
        if self.special[:2] != SPECIAL or len({*self.special, *self.genes}) != len(self):
            raise ValueError(f"a vocabulary begins with {SPECIAL}, and no gene is named so")
        genes = set(self.genes)
        if genes & set(self.renamed) or set(self.renamed.values()) - genes:
            raise ValueError("a vocabulary renames ids that it has not, to genes that it has")

    def __len__(self) -> int:
        """Number of tokens: the genes and those that are none."""
        return len(self.genes) + len(self.special)

    @functools.cached_property
    def around(self) -> tuple[int, ...]:
        """Tokens before and after a cell's genes: `<cls>`, `<eos>` (Geneformer V2), or none."""
        whole = START in self.special and END in self.special
        return (self.special.index(START), self.special.index(END)) if whole else ()

    @functools.cached_property
    def token(self) -> dict[str, int]:
        """Token of each gene."""
        return {gene: token for token, gene in enumerate(self.genes, len(self.special))}

    @functools.cached_property
    def hash(self) -> str:
        """What a checkpoint and a corpus must share, hex: the meaning of every token."""
        digest = hashlib.sha256("\n".join(self.special + self.genes).encode())
        digest.update(np.ascontiguousarray(self.medians, "<f8").tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: pathlib.Path) -> None:
        """Writes JSON; the medians come back to the bit."""
        content = {"special": self.special, "genes": self.genes, "medians": self.medians.tolist()}
        if self.renamed:
            content["renamed"] = dict(self.renamed)
        path.write_text(json.dumps(content))

    @classmethod
    def load(cls, path: pathlib.Path) -> "Vocabulary":
        """Reads what `save` wrote, or names what is wrong with the file."""
        try:
            content = json.loads(path.read_text())
            return cls(
                tuple(content["genes"]),
                np.array(content["medians"], np.float64),
                tuple(content["special"]),
                dict(content.get("renamed", {})),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: not a vocabulary ({error}); give the vocabulary.json of a corpus"
            ) from error


def summing_columns(ids: np.ndarray, genes: Sequence[str]) -> sp.csr_matrix:
    """0/1 matrix [len(ids), len(genes)]: counts @ it maps a file's columns to genes.

    Columns of one id are summed; ids that are not among the genes (or None) are left out.
    """
    position = {gene: k for k, gene in enumerate(genes)}
    pairs = [(row, position[i]) for row, i in enumerate(ids) if i in position]
    row, column = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return sp.csr_matrix((np.ones(len(row)), (row, column)), (len(ids), len(genes)))


def read_gene_names(path: str, preferred: Collection[str]) -> dict[str, str]:
    """Table of symbols -> gene ids from a CSV with the columns gene_name and ensembl_id.

    Annotations list some symbols several times (HLA-B has an id for each alternative haplotype):
    such a symbol takes the id that is among the preferred ones, so that files with symbols meet
    files with ids; among several, or none, the lowest id. Without a path the table is empty.
    """
    if not path:
        return {}
    try:
        table = pd.read_csv(path, dtype=str, usecols=["gene_name", "ensembl_id"]).dropna()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no table of gene names ({error}); it must be a CSV with the "
            "columns gene_name and ensembl_id"
        ) from error
    table["ensembl_id"] = table["ensembl_id"].map(_without_version)
    table["other"] = ~table["ensembl_id"].isin(set(preferred))
    table = table.sort_values(["other", "ensembl_id"]).drop_duplicates("gene_name")
    return dict(zip(table["gene_name"], table["ensembl_id"], strict=True))


def gene_ids(
    names: np.ndarray, table: Mapping[str, str] | None, renamed: Mapping[str, str] | None = None
) -> np.ndarray:
    """Ids of a file's genes, object [len(names)], None where there is none.

    Ensembl ids lose their version suffix. Other names are looked up in the table; without a
    table they are taken as ids themselves. An empty name has no id. What is renamed then takes
    its new id.
    """
    ids = [
        _without_version(name) or None
        if ENSEMBL.match(name) or table is None
        else table.get(name)
        for name in names
    ]
    return np.array([(renamed or {}).get(i, i) for i in ids], dtype=object)


def check_one_kind(ids_by_file: Mapping[str, Sequence[str | None]]) -> None:
    """Refuses files of which some name genes by Ensembl id and others by symbol, or two species.

    Args:
      ids_by_file: gene ids of each file, by what the file is called; most of them decide.
    """
    kinds: dict[str, str] = {}
    for file, ids in ids_by_file.items():
        species = Counter(_species(i) for i in ids if i is not None)
        symbols = species.pop("", 0)
        named = species.total() > symbols
        kinds.setdefault(species.most_common(1)[0][0] if named else "", file)
    symbol = kinds.pop("", None)
    if symbol and kinds:
        raise ValueError(
            f"{next(iter(kinds.values()))} names genes by Ensembl id and {symbol} by symbol; give "
            "a table of both with data.gene_names=TABLE.csv (columns gene_name, ensembl_id), or "
            "name a column of .var with the ids by data.gene_column"
        )
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise ValueError(
            f"{first} has genes {one}... and {second} genes {other}...: two species; leave one "
            "out, or replace its ids by those of their orthologs"
        )


def _species(gene: str) -> str:
    """What an Ensembl id begins with, "" for other names."""
    return SPECIES.match(gene).group() if ENSEMBL.match(gene) else ""


def _without_version(gene: str) -> str:
    match = ENSEMBL.match(gene)
    return match.group(1) if match else gene
