"""Fingerprints: equal for equal counts of the same genes, in any order; else different."""

import numpy as np
import scipy.sparse as sp

from scaling.corpus.identical import fingerprints, gene_hashes


def _counts(cells=300, genes=40, seed=0):
    return np.random.default_rng(seed).poisson(0.4, (cells, genes)).astype(float)


def test_equal_cells_and_no_others_share_one():
    counts = _counts()
    counts[7], counts[250] = counts[3], counts[3]
    hashes = gene_hashes(np.array([f"g{k}" for k in range(40)], object))
    prints = fingerprints(sp.csr_matrix(counts), hashes)
    same = (counts[:, None] == counts).all(2)
    np.testing.assert_array_equal(prints[:, None] == prints, same)


def test_neither_the_order_of_genes_nor_a_gene_without_an_id_counts():
    counts, names = _counts(), np.array([f"g{k}" for k in range(39)] + [None], object)
    order = np.random.default_rng(1).permutation(40)
    wanted = fingerprints(sp.csr_matrix(counts), gene_hashes(names))
    moved = sp.csr_matrix(counts[:, order])
    np.testing.assert_array_equal(fingerprints(moved, gene_hashes(names[order])), wanted)
    without = sp.csr_matrix(counts[:, :39])
    np.testing.assert_array_equal(fingerprints(without, gene_hashes(names[:39])), wanted)


def test_counts_that_trade_places_differ():
    hashes = gene_hashes(np.array(["a", "b"], object))
    cells = sp.csr_matrix(np.array([[1.0, 2], [2, 1], [3, 0], [0, 3], [0, 0], [2**31 - 1, 1]]))
    prints = fingerprints(cells, hashes)
    assert len(set(prints.tolist())) == 6 and prints[4] == 0


def test_hashes_are_the_same_everywhere():
    assert gene_hashes(np.array(["ENSG00000141510", None], object)).tolist() == [
        int.from_bytes(bytes.fromhex("6fe67de0c215e44f")), 0,
    ]
