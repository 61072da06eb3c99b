"""Tables of labelled genes and gene sets (CSV, GMT) -> dictionaries by gene or set."""

import csv
import pathlib
from collections.abc import Mapping


def read_two_lists(path: str | pathlib.Path, positive: str, negative: str) -> dict[str, bool]:
    """Labels of genes from a CSV file with a column of positive and one of negative genes.

    As `dosage_sens_tf_labels.csv`: columns of unequal length, the shorter filled with blanks.

    Raises:
      ValueError: a column is missing, or a gene stands in both.
    """
    labels: dict[str, bool] = {}
    for row in _rows(path, positive, negative):
        for column, label in ((positive, True), (negative, False)):
            gene = (row[column] or "").strip()
            if gene and labels.setdefault(gene, label) != label:
                raise ValueError(f"{path}: {gene} in both {positive!r} and {negative!r}")
    return labels


def read_flags(path: str | pathlib.Path, gene: str, *flags: str) -> dict[str, bool]:
    """Labels of genes from a CSV file of one row per gene: positive where all flags are True.

    As `is_bivalent.csv` (gene `tf`, flags `H3K4me3` and `H3K27me3`).

    Raises:
      ValueError: a column is missing, an entry is neither True nor False, or a gene stands twice
        with different labels.
    """
    labels: dict[str, bool] = {}
    for row in _rows(path, gene, *flags):
        entries = [(row[flag] or "").strip().lower() for flag in flags]
        if not set(entries) <= {"true", "false"}:
            raise ValueError(f"{path}: {row[gene]} has {entries} for {flags}; use True or False")
        if labels.setdefault(row[gene].strip(), "false" not in entries) == ("false" in entries):
            raise ValueError(f"{path}: {row[gene]} stands twice, with different labels")
    return labels


def read_labels(path: str | pathlib.Path, **columns) -> dict[str, bool]:
    """Labels of genes from a CSV file of either layout.

    Args:
      path: of the file.
      columns: `positive` and `negative`, of `read_two_lists`; or `gene` and `flags` (a name or
        several), of `read_flags`.

    Raises:
      ValueError: other columns are asked for, or as those do.
    """
    if set(columns) == {"positive", "negative"}:
        return read_two_lists(path, **columns)
    if set(columns) == {"gene", "flags"}:
        flags = columns["flags"]
        return read_flags(path, columns["gene"], *([flags] if isinstance(flags, str) else flags))
    raise ValueError(
        f"{path}: columns {sorted(columns)}; give positive and negative, two lists of genes, or "
        "gene and flags, one row per gene"
    )


def read_gmt(
    path: str | pathlib.Path, ids: Mapping[str, str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Gene sets by name from a GMT file: a set per line, name, description, genes, by tabs.

    Args:
      path: of the file.
      ids: by which genes are renamed that it has; see `vocabulary.read_gene_names`.

    Raises:
      ValueError: a line without a gene, or a set's name twice.
    """
    sets: dict[str, tuple[str, ...]] = {}
    ids = ids or {}
    for number, line in enumerate(pathlib.Path(path).read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        genes = [ids.get(gene.strip(), gene.strip()) for gene in rest[1:] if gene.strip()]
        if not genes:
            raise ValueError(f"{path}: line {number} has no name, description and genes by tabs")
        if name in sets:
            raise ValueError(f"{path}: line {number}: set {name!r} stands twice; rename one")
        sets[name] = tuple(dict.fromkeys(genes))
    return sets


def _rows(path, *columns: str):
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := set(columns) - set(rows.fieldnames or ()):
            raise ValueError(f"{path}: no column {sorted(missing)}; it has {rows.fieldnames}")
        yield from rows
