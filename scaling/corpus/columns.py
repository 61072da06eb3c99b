"""Columns of several files -> gene ids that meet in one vocabulary."""

import numpy as np

from scaling.corpus import readers, vocabulary
from scaling.corpus.vocabulary import Vocabulary


def gene_ids(
    sources: list[readers.Source], gene_names: str, given: Vocabulary | None
) -> dict[str, np.ndarray]:
    """Gene ids of each file's columns, by the file's name; None where a column has none.

    Args:
      sources: the files.
      gene_names: path of a table of symbols, or "".
      given: a vocabulary whose ids symbols should meet; None takes those that files name.

    Raises:
      ValueError: files (or a file and the vocabulary) of two species, or of ids and symbols.
    """
    renamed = given.renamed if given else {}
    ids = {s.name: vocabulary.gene_ids(s.genes, None, renamed) for s in sources}
    if gene_names:
        ensembl = {i for i in union(ids) if vocabulary.ENSEMBL.match(i)}
        table = vocabulary.read_gene_names(gene_names, given.genes if given else ensembl)
        ids = {s.name: vocabulary.gene_ids(s.genes, table, renamed) for s in sources}
        for source in (s for s in sources if not any(ids[s.name]) and not s.tokenised):
            raise ValueError(
                f"{source.path}: {gene_names} has none of its genes (such as {source.genes[0]!r}); "
                "give a table of its symbols, or name their column by data.gene_column"
            )
    named = {name: of_file for name, of_file in ids.items() if len(of_file)}
    vocabulary.check_one_kind(named | ({"the vocabulary": given.genes} if given else {}))
    return ids


def union(ids: dict[str, np.ndarray]) -> list[str]:
    """All gene ids of the files, sorted."""
    return sorted({i for of_file in ids.values() for i in of_file if i is not None})
