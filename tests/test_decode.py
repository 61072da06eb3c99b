"""Masked genes filled: by hand on a model of known logits, in both orders, from P and from Q."""

import numpy as np
import pytest

from scaling.corpus.encodings import Cells
from scaling.corpus.tokens import MASK, PAD
from scaling.evaluate import decode
from scaling.pretrain import step
from scaling.pretrain.model import ModelSettings, RankEncoder

V = 12
MODEL = ModelSettings(1, 8, 2, 8, 16, "relu", 0.0, 1e-12)


def liking(*genes) -> dict:
    """Weights under which every position likes these genes, the first one most, and no other."""
    params = step.initial_params(0, MODEL, V)
    bias_V = np.full(V, -50.0, np.float32)
    bias_V[list(genes)] = -np.arange(len(genes))
    return params | {"bias": bias_V, "embedding": np.asarray(params["embedding"]) * 0}


def filled(params, *cells, **options):
    tokens = np.full((len(cells), 16), PAD, np.int32)
    for row, cell in zip(tokens, cells, strict=True):
        row[: len(cell)] = cell
    found = decode.fill(params, MODEL, Cells(tokens), 2, **options)
    assert (found[tokens != MASK] == tokens[tokens != MASK]).all() and (found != MASK).all()
    return [
        [int(gene) for gene, token in zip(row, cell, strict=False) if token == MASK]
        for row, cell in zip(found, cells, strict=True)
    ]


def test_p_repeats_the_likeliest_gene_and_q_never_a_known_one():
    params, cells = liking(5, 7, 9), ([5, MASK, MASK, 8], [3, MASK], [4, 6])
    for order in ("at_once", "one_by_one"):
        assert filled(params, *cells, read="P", order=order) == [[5, 5], [5], []]
    # 5 stands in the first cell; of 7 and 9 the better rank gets the likelier one.
    assert filled(params, *cells, read="Q", order="one_by_one") == [[7, 9], [5], []]
    at_once = filled(params, *cells, read="Q", order="at_once")
    assert at_once[0][0] == 7 and at_once[1:] == [[5], []]


def test_at_once_the_genes_are_those_of_p_and_of_q_written_out():
    params, cell, differ = step.initial_params(1, MODEL, V), [3, 5, *6 * [MASK], 8], 0
    for scale in (5.0, 20.0, 60.0):
        params = params | {"embedding": params["embedding"] * scale}
        read = np.array([cell]), np.arange(2, 8)[None]
        hidden_MxD = np.asarray(RankEncoder(MODEL, V).apply({"params": params}, *read), float)[0]
        logits_MxV = hidden_MxD @ np.asarray(params["embedding"], float).T
        logits_MxV[:, :2] = -np.inf
        p_MxV = np.exp(logits_MxV - logits_MxV.max(1, keepdims=True))
        p_MxV /= p_MxV.sum(1, keepdims=True)
        free_MxV = np.cumprod(np.concatenate([np.ones((1, V)), 1 - p_MxV[:-1]]), 0)
        free_MxV[:, [3, 5, 8]] = 0
        p, q = (array.argmax(1).tolist() for array in (p_MxV, p_MxV * free_MxV))
        assert filled(params, cell, read="P", order="at_once") == [p]
        assert filled(params, cell, read="Q", order="at_once") == [q]
        differ += p != q
    assert differ


def test_what_is_no_gene_is_never_put_in():
    params = liking(PAD, MASK, 6)
    for read in ("P", "Q"):
        assert filled(params, [3, MASK], read=read) == [[6]]


def test_one_after_another_reads_the_cell_anew():
    """A model whose second gene depends on the first: filled by hand, mask by mask."""
    params, cell = step.initial_params(3, MODEL, V), [3, MASK, 4, MASK, MASK]
    params = params | {"embedding": params["embedding"] * 40, "positions": params["positions"] * 40}
    by_hand = list(cell)
    while MASK in by_hand:
        first = by_hand.index(MASK)
        by_hand[first] = filled(params, by_hand, read="Q", order="at_once")[0][0]
    wanted = [gene for gene, token in zip(by_hand, cell, strict=True) if token == MASK]
    assert filled(params, cell, read="Q", order="one_by_one") == [wanted]
    together = filled(params, cell, cell[:2], [5], read="Q", order="one_by_one")
    assert together[0] == wanted and together[2] == []


def test_another_reading_or_order_is_refused():
    for wrong in ({"read": "q"}, {"order": "twice"}):
        with pytest.raises(ValueError, match="give 'P' or 'Q', 'at_once' or 'one_by_one'"):
            filled(liking(5), [3, MASK], **wrong)
