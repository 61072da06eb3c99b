"""Embeddings of cells and genes: their definition, on any device, beside the public BERT's."""

import jax
import numpy as np
import pytest
from test_whole_steps import tiny, weights_for_torch

from scaling.corpus.encodings import Cells
from scaling.evaluate import bench, embed
from scaling.pretrain import step, whole_steps
from scaling.pretrain.model import RankEncoder

V, SPECIAL = 400, 2
MODEL = tiny(length=200).run.model
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
    drawn = step.initial_params(0, MODEL, V)
    return jax.tree.map(lambda x: np.float32(x + 0.3 * RNG.normal(size=x.shape)), drawn)


@pytest.fixture(scope="module")
def tokens():
    """Cells of 1 to 200 genes, in no order."""
    cells = whole_steps.full_cells(V, 200, 30)
    cells[np.arange(200) >= RNG.integers(1, 201, (30, 1))] = 0
    return cells


def states(params, cell):
    encoder = RankEncoder(MODEL, V)
    return encoder.apply({"params": params}, cell[None, cell > 0], method="encode")[-2][0]


def test_cells_are_means_over_their_genes(params, tokens):
    found = embed.embed_cells(params, MODEL, -2, [Cells(tokens)], SPECIAL)
    wanted = [np.mean(states(params, cell), 0) for cell in tokens]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_cell_has_the_same_bits_whatever_is_embedded_with_it(params, tokens, monkeypatch):
    monkeypatch.setattr(embed, "LENGTHS", (64, 128))
    whole = embed.embed_cells(params, MODEL, -2, [Cells(tokens)], SPECIAL)
    parts = [Cells(part) for part in (tokens[:1], tokens[1:8], tokens[8:])]
    np.testing.assert_array_equal(embed.embed_cells(params, MODEL, -2, parts, SPECIAL), whole)
    order = RNG.permutation(30)
    found = embed.embed_cells(params, MODEL, -2, [Cells(tokens[order])], SPECIAL)
    np.testing.assert_array_equal(found, whole[order])


def test_first_positions_where_cells_begin_with_cls(params, tokens):
    found = embed.embed_cells(params, MODEL, -2, [Cells(tokens)], 4, "cls")
    np.testing.assert_allclose(
        found, [states(params, cell)[0] for cell in tokens], rtol=1e-4, atol=1e-5
    )
    for special, pool in ((SPECIAL, "cls"), (4, "last")):
        told = f"the pool is '{pool}' and the vocabulary has {special} special"
        with pytest.raises(ValueError, match=told):
            embed.embed_cells(params, MODEL, -2, [Cells(tokens)], special, pool)


def test_genes_are_means_over_the_cells_that_have_them(params, tokens):
    sums, cells = np.zeros((V, MODEL.width)), np.zeros(V, int)
    for cell in tokens:
        sums[cell[cell > 0]] += states(params, cell)
        cells[cell[cell > 0]] += 1
    found, counted = embed.embed_genes(params, MODEL, -2, [Cells(tokens[:7]), Cells(tokens[7:])])
    np.testing.assert_array_equal(counted, cells)
    seen = cells > 0
    np.testing.assert_allclose(found[seen], sums[seen] / cells[seen, None], rtol=1e-4, atol=1e-5)
    assert np.isnan(found[~seen]).all() and not seen[0]


def test_layers_that_there_are_not_are_refused(params, tokens):
    for embedded in (
        lambda layer: embed.embed_cells(params, MODEL, layer, [Cells(tokens)], SPECIAL),
        lambda layer: embed.embed_genes(params, MODEL, layer, [Cells(tokens)]),
    ):
        with pytest.raises(ValueError, match="layer 3 of a model of 2 layers"):
            embedded(3)


@pytest.mark.slow
def test_the_public_bert_that_is_timed_gives_our_embeddings(params, tokens):
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("transformers")
    bert = whole_steps.bert(tiny(length=200).run.content()["model"], V).eval()
    given = {k: torch.tensor(np.array(v)) for k, v in weights_for_torch(params, 2).items()}
    bert.load_state_dict(given, strict=False)
    found = bench.bert_embeddings(bert.bert, tokens, SPECIAL)
    ours = embed.embed_cells(params, MODEL, bench.LAYER, [Cells(tokens)], SPECIAL)
    np.testing.assert_allclose(found, ours, rtol=1e-4, atol=1e-4)
