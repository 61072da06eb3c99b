"""A seed -> a small table of counts with oddities or a fault, and the tokens that it must give.

Every entry of ODDITIES and FAULTS is a function (rng, cells) that changes the cells in place.
Tables with oddities are good ones; those with a fault must be refused.
"""

import dataclasses
import re

import numpy as np
import pandas as pd

GENE, ANTIBODY = "Gene Expression", "Antibody Capture"
TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
TYPES += ("bool", "float32", "float64")
ODD_NAMES = (
    "", " ", "NA", "nan", "None", "null", "Übergang", "細胞", "🧬🐭", "α/β:γ", "it's", 'a"b', "#x",
    "1", "1.0", "<mask>", "x" * 300, "á", "a,b",
)  # fmt: skip


@dataclasses.dataclass
class Cells:
    """What a file is to hold.

    Attributes:
      entries: cell, gene, count of each stored entry, in their order; entries of one place sum.
      names, genes: of the rows and the columns.
      kinds: type of feature of each column, as 10x stores tell it.
      labels: of the cells, any pandas array; None where the file has no column of labels.
      stored: name of the dtype of the counts, "" takes any that holds them.
    """

    entries: tuple[np.ndarray, np.ndarray, np.ndarray]
    names: list[str]
    genes: list[str]
    kinds: list[str]
    labels: object = None
    stored: str = ""

    @property
    def counts(self) -> np.ndarray:
        """float64 [cells, genes]."""
        counts = np.zeros((len(self.names), len(self.genes)))
        np.add.at(counts, self.entries[:2], self.entries[2])
        return counts


def draw(rng: np.random.Generator) -> Cells:
    """Plain counts with names, and labels of text."""
    cells, genes = rng.integers(12, 41), rng.integers(12, 31)
    counts = rng.poisson(np.geomspace(0.1, 6, genes), (cells, genes))
    counts[:, 0] += 1
    row, column = np.nonzero(counts)
    ensembl = rng.random() < 0.5
    names = [f"ENSG{k:011d}" if ensembl else f"G{k}" for k in rng.permutation(genes)]
    entries = row, column, counts[row, column].astype(np.float64)
    labels = np.array([f"type {k}" for k in rng.integers(3, size=cells)], object)
    return Cells(entries, [f"c{k}-1" for k in range(cells)], names, [GENE] * genes, labels)


def _pick(rng, of, most: int) -> np.ndarray:
    return rng.choice(len(of), rng.integers(1, most + 1), replace=False)


def in_any_order(rng, cells):
    order = rng.permutation(len(cells.entries[2]))
    cells.entries = tuple(part[order] for part in cells.entries)


def explicit_zeros(rng, cells):
    row = rng.integers(len(cells.names), size=9)
    column = rng.integers(len(cells.genes), size=9)
    new = row, column, np.zeros(9)
    cells.entries = tuple(np.concatenate(parts) for parts in zip(cells.entries, new, strict=True))


def entries_in_two(rng, cells):
    row, column, counts = cells.entries
    some = _pick(rng, counts, 9)
    part = np.floor(counts[some] * rng.random(len(some)))
    counts = counts.copy()
    counts[some] -= part
    cells.entries = np.r_[row, row[some]], np.r_[column, column[some]], np.r_[counts, part]


def empty_rows(rng, cells):
    row = rng.choice([0, len(cells.names) - 1, rng.integers(len(cells.names))])
    kept = ~np.isin(cells.entries[0], [row, (row + 1) % len(cells.names)])
    cells.entries = tuple(part[kept] for part in cells.entries)


def empty_columns(rng, cells):
    kept = ~np.isin(cells.entries[1], 1 + rng.integers(len(cells.genes) - 1, size=2))
    cells.entries = tuple(part[kept] for part in cells.entries)


def one_gene_has_all(rng, cells):
    cells.entries = cells.entries[0], np.zeros_like(cells.entries[1]), cells.entries[2]


def at_most_one(rng, cells):
    if cells.entries[1].any():  # else all cells would be alike
        cells.entries = *np.nonzero(cells.counts), np.ones(np.count_nonzero(cells.counts))


def just_below_the_limit(rng, cells):
    first = cells.entries[1] == 0
    at = rng.choice(np.flatnonzero(first))
    cells.entries[2][at] += 2**31 - 1 - cells.counts[cells.entries[0][at], 0]


def versions(rng, cells):
    cells.genes = [f"{g}.{rng.integers(20)}" if g.startswith("ENSG") else g for g in cells.genes]


def genes_twice(rng, cells):
    for k in 1 + _pick(rng, cells.genes[1:], 3):
        cells.genes[k] = cells.genes[rng.integers(len(cells.genes))]


def odd_genes(rng, cells):
    for k in 1 + _pick(rng, cells.genes[1:], 2):
        cells.genes[k] = str(rng.choice(ODD_NAMES))


def odd_cells(rng, cells):
    some = _pick(rng, cells.names, 6)
    for k, name in zip(some, rng.permutation(ODD_NAMES), strict=False):
        cells.names[k] = str(name)


def antibodies(rng, cells):
    for k in 1 + _pick(rng, cells.genes[1:], 3):
        cells.kinds[k] = ANTIBODY


def odd_labels(rng, cells):
    n = len(cells.names)
    number, gone = rng.integers(3, size=n), rng.random(n) < 0.3
    text = np.array(["T 細胞", "nan", ""], object)[number]
    cells.labels = [
        lambda: pd.Categorical(text, ["", "nan", "T 細胞", "unused"], ordered=True),
        lambda: pd.Categorical(np.where(gone, None, text)),
        lambda: np.where(gone, None, text),
        lambda: pd.Categorical(number),
        lambda: pd.array(number).astype("Int64").copy(),
        lambda: pd.array(np.where(gone, None, number), "Int64"),
        lambda: pd.array(np.where(gone, None, number == 1), "boolean"),
        lambda: np.where(gone, np.nan, number),
        lambda: pd.Categorical(np.full(n, None, object)),
        lambda: number == 1,
        lambda: number,
        lambda: None,
    ][rng.integers(12)]()


ODDITIES = (
    in_any_order, explicit_zeros, entries_in_two, empty_rows, empty_columns, one_gene_has_all,
    at_most_one, just_below_the_limit, versions, genes_twice, odd_genes, odd_cells, antibodies,
    odd_labels,
)  # fmt: skip


def no_count(rng, cells):
    genes = np.array(cells.kinds)[cells.entries[1]] == GENE
    at = rng.choice(np.flatnonzero(genes))
    value = rng.choice([np.nan, np.inf, -np.inf, -1000.0, cells.entries[2][at] + 0.5, 2.0**31])
    cells.entries[2][at] = value


def names_twice(rng, cells):
    one, other = rng.choice(len(cells.names), 2, replace=False)
    cells.names[one] = cells.names[other]


def nothing(rng, cells):
    cells.entries = tuple(part[:0] for part in cells.entries)
    what = rng.integers(3)
    if what == 0:
        cells.names, cells.labels = [], None
    elif what == 1:
        cells.genes, cells.kinds = [], []


def text_for_counts(rng, cells):
    cells.stored = "S"


def complex_counts(rng, cells):
    cells.stored = "complex128"


FAULTS = (no_count, no_count, no_count, names_twice, nothing, text_for_counts, complex_counts)


def ids(genes) -> list[str]:
    """Gene ids of names: those of Ensembl without their version."""
    return [re.sub(r"^(ENS[A-Z]*G\d+)\.\d+$", r"\1", gene) for gene in genes]


def draw_vocabulary(rng, cells: Cells) -> dict[str, float]:
    """Medians of most genes of the table and of some others, with many ties between scores."""
    kinds = {i: kind for i, kind in zip(ids(cells.genes), cells.kinds, strict=True) if i}
    first = ids(cells.genes)[:1]
    genes = [g for g in kinds if g not in first and g != "<mask>" and rng.random() < 0.8]
    genes += [*first, *(("ENSG99", "ENSG98") if "ENSG" in "".join(first) else ("other", "genes"))]
    return {genes[k]: float(rng.choice([0.5, 1, 2, 3])) for k in rng.permutation(len(genes))}


def expected(cells: Cells, medians: dict[str, float], typed: bool) -> list[tuple] | None:
    """Cell id, label, total and tokens of each cell that has a token; None for no table of counts.

    Args:
      cells: the table.
      medians: of the vocabulary's genes, in their order.
      typed: whether the store tells types of features, so that others than genes are left out.
    """
    counts, rows = cells.counts, []
    valid = np.isfinite(counts) & (counts >= 0) & (counts < 2**31) & (counts == np.round(counts))
    if not counts.size or not valid.all() or len(set(cells.names)) < len(cells.names):
        return None
    token = {gene: k + 2 for k, gene in enumerate(medians)}
    median = dict(zip(token.values(), medians.values(), strict=True))
    labels = [None] * len(counts) if cells.labels is None else list(cells.labels)
    kept = [not typed or kind == GENE for kind in cells.kinds]
    columns = [(k, token.get(g)) for k, g in enumerate(ids(cells.genes)) if kept[k]]
    for name, label, row in zip(cells.names, labels, counts, strict=True):
        total, of_token = sum(row[k] for k, _ in columns), {}
        for k, t in columns:
            if t is not None and row[k]:
                of_token[t] = of_token.get(t, 0.0) + row[k]
        score = {t: count / total * 10_000 / median[t] for t, count in of_token.items()}
        tokens = sorted(score, key=lambda t: (-score[t], t))
        if tokens:
            whole = isinstance(label, float) and label % 1 == 0  # floats by what is missing
            label = "" if label is None or pd.isna(label) else str(int(label) if whole else label)
            rows.append((f"fuzzed:{name}", label, total, tokens))
    return rows or None
