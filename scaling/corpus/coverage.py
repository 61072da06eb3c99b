"""A file's gene ids and counts + a vocabulary -> how much of the file has tokens, or a refusal."""

import numpy as np
from tqdm import tqdm

from scaling.corpus import readers
from scaling.corpus.vocabulary import Vocabulary

# Of a file's counts. Cells of the vocabulary's species lie far above it, and so do panels, whose
# few genes are common ones; names that coincide by chance lie far below. Of counts, not of genes:
# a vocabulary of the genes that many cells have holds few of a file's genes and most of its counts.
MIN_COVERED = 0.05


def gene_totals(source: readers.Source) -> np.ndarray:
    """Counts of each column of a file over all its cells, float64 [genes]."""
    totals_G = np.zeros(len(source.genes))
    cells = len(source.obs)
    with tqdm(total=cells, desc=f"checking {source.name}", unit="cells", leave=False) as bar:
        for chunk, counts in readers.chunks(source):
            totals_G += np.asarray(counts.sum(0)).ravel()
            bar.update(len(chunk))
    return totals_G


def report(ids: np.ndarray, totals_G: np.ndarray, genes: Vocabulary) -> dict[str, float]:
    """What a vocabulary covers of a file.

    Args:
      ids: gene id of each column, None where it has none.
      totals_G: counts of each column.
      genes: the vocabulary.

    Returns:
      genes: columns; genes_without_id; genes_mapped: columns that have a token; genes_summed: of
      those, the ones that share it with another column; counts; counts_covered: share of the
      counts that lie in columns with a token, 0 to 1 (0 without any count).
    """
    position = {gene: k for k, gene in enumerate(genes.genes)}
    columns = np.array([position.get(i, -1) for i in ids])
    mapped = columns >= 0
    of_token = np.bincount(columns[mapped], minlength=1)
    return {
        "genes": len(ids),
        "genes_without_id": sum(i is None for i in ids),
        "genes_mapped": int(mapped.sum()),
        "genes_summed": int(of_token[of_token > 1].sum()),
        "counts": int(totals_G.sum()),
        "counts_covered": float(totals_G[mapped].sum() / max(totals_G.sum(), 1)),
    }


def check(source: readers.Source, found: dict[str, float], genes: Vocabulary) -> None:
    """Refuses a file of which the vocabulary covers too little.

    Args:
      source: the file.
      found: what `report` says of it.
      genes: the vocabulary.

    Raises:
      ValueError: less than MIN_COVERED of its counts, or no gene at all.
    """
    remedy = "map symbols with data.gene_names, or name the column with the ids by data.gene_column"
    if not found["genes_mapped"]:
        raise ValueError(
            f"{source.path}: none of its {len(source.genes)} genes (such as {source.genes[0]!r}) "
            f"is in the vocabulary (such as {genes.genes[0]!r}); {remedy}"
        )
    if found["counts"] and found["counts_covered"] < MIN_COVERED:
        raise ValueError(
            f"{source.path}: the vocabulary covers {found['counts_covered']:.1%} of its counts "
            f"({found['genes_mapped']} of {found['genes']} genes), and {MIN_COVERED:.0%} is the "
            f"least: its genes are another species' or named otherwise; {remedy}, or leave it out"
        )
