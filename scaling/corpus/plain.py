"""A `.h5ad` -> a Hugging Face data set of rank tokens, written plainly: what ours is measured on.

The steps are those of Geneformer's published tokeniser (Theodoris et al. 2023): some cells at a
time are normalised, each cell is sorted by itself, and a data set is made from lists, then cut.
"""

import pathlib
import time

import numpy as np
import scipy.sparse as sp

from scaling.corpus.vocabulary import TARGET_SUM, Vocabulary

CHUNK_CELLS = 512
LABELS = ("cell_type", "donor", "batch", "assay")  # columns of .obs, copied where a file has them


def rank_cells(
    counts_NxG: sp.csr_matrix, totals_N: np.ndarray, medians_G: np.ndarray, special: int
) -> np.ndarray:
    """What `ranks.rank_tokens` gives, by one stable NumPy sort for each cell.

    Args:
      counts_NxG: raw counts, the genes of each cell in rising order: so ties go to the lower token.
      totals_N, medians_G, special: as there.
    """
    cells = []
    for cell, total in enumerate(totals_N):
        at = slice(counts_NxG.indptr[cell], counts_NxG.indptr[cell + 1])
        gene = counts_NxG.indices[at]
        score = counts_NxG.data[at] / total * TARGET_SUM / medians_G[gene]
        cells.append(gene[np.argsort(-score, kind="stable")] + special)
    return np.concatenate(cells)


def tokenise(path: str, vocabulary: str, out: str, length: int, processes: int) -> dict[str, float]:
    """Writes a data set with input_ids, length, cell_id, n_counts and the labels; needs `datasets`.

    Args:
      path: raw counts by cell in .X, the columns named as the vocabulary's genes.
      vocabulary: a corpus's `vocabulary.json`.
      out: folder that gets the data set.
      length: tokens that cells are cut to.
      processes: that cut, add the length, and write.

    Returns:
      Seconds: rank (read, normalise, sort), gather (lists to a data set), cut, save.
    """
    import anndata
    import datasets

    times = [time.perf_counter()]
    genes = Vocabulary.load(pathlib.Path(vocabulary))
    data = anndata.read_h5ad(path, backed="r")
    known = np.flatnonzero(data.var_names.isin(genes.genes))
    tokens = np.array([genes.token[name] for name in data.var_names[known]])
    medians = genes.medians[tokens - len(genes.special)]
    labels = [name for name in LABELS if name in data.obs]
    columns = {name: [] for name in ("input_ids", "n_counts", "cell_id", *labels)}
    for start in range(0, data.n_obs, CHUNK_CELLS):
        counts = data.X[start : start + CHUNK_CELLS]
        totals = np.asarray(counts.sum(1)).ravel()
        score = counts[:, known].astype(np.float64)
        score.data = score.data / np.repeat(totals, np.diff(score.indptr)) * TARGET_SUM
        score.data /= medians[score.indices]
        for cell in range(score.shape[0]):
            row = score[cell]
            columns["input_ids"].append(tokens[row.indices[np.argsort(-row.data)]])
        columns["n_counts"] += totals.tolist()
        obs = data.obs[start : start + CHUNK_CELLS]
        columns["cell_id"] += obs.index.tolist()
        for name in labels:
            columns[name] += obs[name].tolist()
    times.append(time.perf_counter())
    cells = datasets.Dataset.from_dict(columns)
    times.append(time.perf_counter())

    def cut(cell: dict) -> dict:
        cell["input_ids"] = cell["input_ids"][:length]
        cell["length"] = len(cell["input_ids"])
        return cell

    cells = cells.map(cut, num_proc=processes)
    times.append(time.perf_counter())
    cells.save_to_disk(out, num_proc=processes)
    times.append(time.perf_counter())
    return dict(zip(("rank", "gather", "cut", "save"), np.diff(times).tolist(), strict=True))
