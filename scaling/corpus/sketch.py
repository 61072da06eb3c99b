"""A corpus's rank tokens -> each pool cell's bin in expression space, in integers throughout.

Hie et al. 2019 (geometric sketching) cover principal components of the cells with boxes of equal
side. Principal components from a linear-algebra library differ in the last bit between machines,
and a cell near a side would change its box. So theirs are found here by subspace iteration on
integers, which has no rounding that a machine could choose. A projection drawn from hashes alone
would not depend on the corpus at all, but mixes the few directions in which cells differ with
thousands of noisy ones: its sketches covered real cells no better than random subsets.
"""

import functools
import hashlib
import math

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from scaling.corpus import subsets
from scaling.corpus.encodings import pad
from scaling.corpus.shards import Corpus
from scaling.corpus.vocabulary import Vocabulary

RANKS = 2_048  # best ranks of a cell that count
LENGTH = 1 << 15  # of a cell's vector: else components would follow the number of its genes
AXES, BITS = 4, 16  # principal components, and bits of a position on one: a code of 64 bits
REFERENCE_CELLS, REFERENCE_SEED = 1_000, 0  # cells that the components come from
ITERATIONS = 8  # of the subspace
UNIT = 1 << 20  # length of a component's loadings
CHUNK = 4_096  # cells read at once


def rank_weights(corpus: Corpus, rows: np.ndarray) -> sp.csr_matrix:
    """Cells as vectors of genes, in whole numbers.

    The best rank weighs 2,048, the next 2,047, an absent gene 0; then each cell is scaled to
    length 2^15 and cut to whole numbers.

    Args:
      corpus: built corpus.
      rows: int64 [n], cells.

    Returns:
      int64 CSR [n, tokens of the vocabulary].
    """
    tokens = pad(corpus.cells(rows), RANKS)
    cell, rank = np.nonzero(tokens)
    weights = RANKS - rank
    lengths = np.sqrt(np.bincount(cell, weights**2, len(rows))).astype(np.int64)
    entries = weights * LENGTH // lengths[cell], (cell, tokens[cell, rank])
    return sp.csr_matrix(entries, (len(rows), len(corpus.vocabulary)))


@functools.lru_cache(maxsize=1)  # a study asks for the same corpus once a run
def bins(corpus: Corpus) -> np.ndarray:
    """Code of each cell's place on the principal components.

    The bits of the four positions are interleaved, the highest first: cells whose codes agree
    but for the last 4·k bits share a bin, a cube of side 2^k. The origin stands at a third of the
    range, which no halving ever makes a side.

    The components come from the 1,000 pool cells of least hash, so bins are those of this corpus:
    one that has grown keeps them as long as these cells and the vocabulary stay.

    Returns:
      uint64 [cells of the corpus], 0 outside the pool; not writable.
    """
    pool = np.flatnonzero(corpus.obs["split"].to_numpy() == "pool")
    ids = corpus.obs["cell_id"].to_numpy()[pool]
    reference = pool[subsets.order(ids, REFERENCE_SEED)[:REFERENCE_CELLS]]
    weights = rank_weights(corpus, reference)
    loadings = components(weights, _start(corpus.vocabulary))
    placed = weights @ loadings
    centre = placed.sum(0) // len(placed)
    excess = int(np.abs(placed - centre).max()).bit_length() - (BITS - 2)
    codes = np.zeros(len(corpus.obs), np.uint64)
    for rows in tqdm(np.split(pool, range(CHUNK, len(pool), CHUNK)), "sketch", leave=False):
        position = (rank_weights(corpus, rows) @ loadings - centre) >> max(excess, 0)
        position = np.clip(position + (1 << BITS) // 3, 0, (1 << BITS) - 1).astype(np.uint64)
        for bit in range(BITS):
            for axis in range(AXES):
                one = (position[:, axis] >> np.uint64(bit)) & np.uint64(1)
                codes[rows] |= one << np.uint64(AXES * bit + AXES - 1 - axis)
    codes.setflags(write=False)
    return codes


def components(weights: sp.csr_matrix, start: np.ndarray) -> np.ndarray:
    """Loadings of the leading principal components, the same to the bit on every machine.

    Subspace iteration (Halko, Martinsson & Tropp 2011, section 4.5) with Gram-Schmidt
    in whole numbers; floors take the place of rounding.

    Args:
      weights: int64 CSR [cells, genes], at most 1,000 cells of length 2^15: no sum of theirs
        leaves 64 bits.
      start: int64 [genes, components].

    Returns:
      int64 [genes, components], each about 2^20 long; 0 where cells do not differ so much.
    """
    loadings = start
    for _ in range(ITERATIONS):
        placed = weights @ loadings
        loadings, columns = weights.T @ (placed - placed.sum(0) // len(placed)), []
        for column in loadings.T.astype(object):  # Python's numbers, which do not overflow
            for other in columns:
                column = column - other * int(other @ column) // (int(other @ other) or 1)
            columns.append(column * UNIT // (math.isqrt(int(column @ column)) or 1))
        loadings = np.stack(columns, 1).astype(np.int64)
    return loadings


def _start(vocabulary: Vocabulary) -> np.ndarray:
    """Signs from the hash of each gene's id, int64 [tokens, axes]; 0 for special tokens."""
    names = (gene.encode() for gene in vocabulary.genes)
    digests = b"".join(hashlib.blake2b(name, digest_size=AXES).digest() for name in names)
    signs = np.frombuffer(digests, np.uint8).reshape(-1, AXES).astype(np.int64) % 2 * 2 - 1
    return np.concatenate([np.zeros((len(vocabulary.special), AXES), np.int64), signs])
