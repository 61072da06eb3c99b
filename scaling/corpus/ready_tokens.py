"""Ready tokens of another tool -> genes of a vocabulary, and a corpus -> a data set of tokens."""

import pathlib
import shutil
import tempfile

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from scaling.corpus import identical, readers
from scaling.corpus.shards import Corpus
from scaling.corpus.tokens import MASK, START
from scaling.corpus.vocabulary import Vocabulary

LABELS = ("cell_id", "dataset", "split", "cell_type", "donor", "batch", "assay")
ALIKE, V2_START = 20, 2  # so many cells that all begin with V2's <cls> are no cells of V1


def genes_alone(
    path, rows: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Checks stored tokens against a vocabulary and leaves out its special ones.

    Args:
      path: of the data set, and
      rows: int64 [n], where the cells stand in it, for errors.
      tokens: int64, cells one after another.
      lengths: int64 [n], tokens of each cell.
      vocabulary: that the tokens should be of.

    Returns:
      tokens uint16 of genes, lengths int64 [n].

    Raises:
      ValueError: a token that the vocabulary has not, `<mask>`, a gene twice in a cell, or cells
        that are wrapped in special tokens of another vocabulary.
    """
    cell_of = np.repeat(rows, lengths)
    remedy = "name the dictionaries it was made with by data.vocabulary"
    wrong = (tokens < 0) | (tokens >= len(vocabulary))
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"{path}: token {tokens[at]} in row {cell_of[at]}, the vocabulary has 0 to "
            f"{len(vocabulary) - 1}; {remedy}"
        )
    if (tokens == MASK).any():
        row = cell_of[int(np.argmax(tokens == MASK))]
        raise ValueError(f"{path}: <mask> in row {row}; give the cells as they were before masking")
    filled, special = lengths > 0, len(vocabulary.special)
    first = tokens[(np.cumsum(lengths) - lengths)[filled]]
    if len(first) >= ALIKE and special <= V2_START and (first == V2_START).all():
        raise ValueError(
            f"{path}: rows {rows[0]}-{rows[-1]} all begin with {V2_START}, which is {START} of "
            f"Geneformer V2, and in this vocabulary a gene; {remedy}"
        )
    genes = tokens >= special
    kept = np.bincount(np.repeat(np.arange(len(rows)), lengths)[genes], minlength=len(rows))
    tokens, starts = tokens[genes], np.concatenate([[0], np.cumsum(kept)])
    twice, _ = readers.untidy(starts, tokens, tokens, len(vocabulary))
    if twice:
        cells = np.split(tokens, starts[1:-1])
        repeats = [len(np.unique(cell)) < len(cell) for cell in cells]
        row = rows[repeats.index(True)]
        raise ValueError(f"{path}: a gene stands twice in row {row}; {remedy}")
    return tokens.astype(np.uint16), kept.astype(np.int64)


def fingerprints(tokens: np.ndarray, lengths: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """uint64 [n] of each cell's (gene, place) pairs: cells of the same genes in the same order.

    Args:
      tokens, lengths: see `genes_alone`.
      vocabulary: that they are of.
    """
    ends = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(1, len(tokens) + 1) - np.repeat(ends[:-1], lengths)
    genes = tokens.astype(np.int64) - len(vocabulary.special)
    shape = len(lengths), len(vocabulary.genes)
    ranked = sp.csr_matrix((places, genes, ends), shape)
    return identical.fingerprints(ranked, identical.gene_hashes(vocabulary.genes))


def write(corpus: Corpus, out: pathlib.Path, length: int | None = None) -> None:
    """Writes a corpus as a Hugging Face data set: input_ids, length, and what is known of cells.

    Cells stand between `<cls>` and `<eos>` where the vocabulary has them (Geneformer V2).

    Args:
      corpus: built corpus.
      out: folder to write; must not exist.
      length: tokens that a cell is cut to, the special ones included; None cuts none.

    Raises:
      ValueError: the folder exists, the length leaves no gene, or `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{error}; pip install 'scaling[datasets]'") from error
    if out.exists() or not out.parent.is_dir():
        state = "exists" if out.exists() else "lies in a folder that does not exist"
        raise ValueError(f"{out} {state}; name another folder")
    around = corpus.vocabulary.around
    if length is not None and length <= len(around):
        raise ValueError(f"a length of {length} leaves no gene; give more, or leave it out")
    most = None if length is None else length - len(around)
    text = dict.fromkeys(LABELS, datasets.Value("string"))
    whole = datasets.Value("int32")
    numbers = {"input_ids": datasets.List(whole), "length": whole}

    def cells():
        labels = corpus.obs[list(LABELS)].astype(str).to_numpy()
        for row in tqdm(range(len(labels)), desc="writing", unit="cells", leave=False):
            genes = corpus.cells([row])[0][:most]
            tokens = np.concatenate([around[:1], genes, around[1:]]).astype(np.int32)
            known = dict(zip(LABELS, labels[row], strict=True))
            yield {"input_ids": tokens, "length": len(tokens), **known}

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as cache:
            features = datasets.Features(numbers | text)
            made = datasets.Dataset.from_generator(cells, features=features, cache_dir=cache)
            made.save_to_disk(partial)
            del made
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
