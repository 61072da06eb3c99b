"""A cell's loss and gradients are its own: neither padding nor the cells beside it reach them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from scaling.corpus.tokens import MASK, PAD
from scaling.pretrain import attention, masking
from scaling.pretrain.model import ModelSettings, RankEncoder
from scaling.pretrain.objectives import ObjectiveSettings, objective
from scaling.pretrain.step import initial_params

V, LENGTHS, BUCKET = 60, (21, 40, 33), 64
MODEL = ModelSettings(
    layers=2, width=12, heads=3, feed_forward=16, length=64, activation="relu", dropout=0.0,
    norm_epsilon=1e-12,
)
DROPS = dataclasses.replace(MODEL, dropout=0.3)
MASKS = masking.MaskingSettings(0.2, 0.8, 0.1, False)
MLM = ObjectiveSettings("mlm", "recalibrated", "cosine", 0.15, "masked_pairs")
CAB = dataclasses.replace(MLM, name="cab")
MASK_SEED = 4  # under which no cell has more masked positions than slots, at any length


@pytest.fixture(autouse=True)
def several_blocks_of_queries(monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 16)


@functools.lru_cache
def params() -> dict:
    """Weights under which attention is far from uniform."""
    drawn, rng = initial_params(0, MODEL, V), np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float64(x) + 0.5 * rng.normal(size=x.shape), drawn)


def genes(cell: int, length: int) -> np.ndarray:
    """Tokens [length] of a cell, padded; a negative number is another cell of the same size."""
    tokens = np.zeros(length, np.int32)
    size, order = LENGTHS[abs(cell)], np.random.default_rng(abs(cell) + 10 * (cell < 0))
    tokens[:size] = order.permutation(np.arange(2, V))[:size]
    return tokens


def masked(cells: list[int], length: int, counted: int) -> masking.MaskedCells:
    """Cells side by side, of which the slots of one alone are filled."""
    tokens = np.stack([genes(cell, length) for cell in cells])
    ids = np.abs(cells)
    found = masking.mask_cells(tokens, MASK_SEED, 0 * ids, ids, V, MASKS)
    assert not found.surplus_B.any()
    others = np.arange(len(cells)) != cells.index(counted)
    found.labels_BxM[others] = -1
    return found


def sums_and_gradients(cells, settings, model=MODEL, places=None):
    """Loss as a run sums it, undivided, and its gradients by all weights, float64."""
    with jax.enable_x64(True):
        return jax.device_get(compiled(settings, model)(params(), cells, places))


@functools.lru_cache
def compiled(settings, model):
    def loss(params, cells, places):
        read, rngs = (cells.inputs_BxL, cells.slots_BxM, places), {"dropout": jax.random.key(1)}
        hidden = RankEncoder(model, V).apply({"params": params}, *read, rngs=rngs)
        arrays = hidden, params["embedding"], params["bias"]
        sums, _ = objective(*arrays, cells, masking.known_genes(cells, V), settings)
        return sums.cross_entropy + sums.similarity, sums

    def both(*arguments):
        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(*arguments)
        return sums, grads

    return jax.jit(both)


def assert_same(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-10), found, wanted)


@pytest.mark.parametrize("settings", [MLM, CAB], ids=["mlm", "cab"])
@pytest.mark.parametrize("cell", [0, 1])
def test_a_cell_alone_and_unpadded_is_the_cell_in_a_bucket(cell, settings):
    """For cab with one padded position: `<pad>` is known where there is padding, see below."""
    length = LENGTHS[cell] + (settings is CAB)
    sums, grads = alone = sums_and_gradients(masked([cell], length, cell), settings)
    assert sums.cross_entropy > 1 and (sums.similarity > 0) == (settings is CAB)
    still = [jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(grads)
             if np.linalg.norm(g) < 1e-6]
    # A bias of keys adds the same to all scores of a query.
    assert all("['key']['bias']" in path for path in still)
    assert_same(sums_and_gradients(masked([0, 1, 2], BUCKET, cell), settings), alone)


def test_that_padding_is_no_gene_is_all_that_cab_learns_from_it(monkeypatch):
    at = functools.partial(sums_and_gradients, settings=CAB)
    alone, padded = at(masked([0], 21, 0)), at(masked([0, 1, 2], BUCKET, 0))
    assert 1e-4 < abs(alone[0].cross_entropy / padded[0].cross_entropy - 1) < 0.05
    of_tokens = masking.known_genes
    monkeypatch.setattr(masking, "known_genes", lambda *of: of_tokens(*of).at[:, PAD].set(True))
    compiled.cache_clear()
    assert_same(at(masked([0], 21, 0)), padded)
    compiled.cache_clear()


@pytest.mark.parametrize("settings", [MLM, CAB], ids=["mlm", "cab"])
def test_other_neighbours_change_nothing(settings):
    whole = dataclasses.replace(DROPS, attention_dropout=0.3)
    of = functools.partial(sums_and_gradients, settings=settings, model=whole, places=np.arange(3))
    assert_same(of(masked([0, -1, -2], BUCKET, 0)), of(masked([0, 1, 2], BUCKET, 0)))
    other, one = of(masked([0, -1, 2], BUCKET, -1)), of(masked([0, 1, 2], BUCKET, 1))
    assert abs(other[0].cross_entropy - one[0].cross_entropy) > 0.01


def test_with_dropout_of_hidden_states_a_cell_is_the_same_at_any_length():
    """Its draws belong to the cell's place in the batch and to the position."""
    at = functools.partial(sums_and_gradients, settings=MLM, model=DROPS)
    alone = at(masked([1], 40, 1), places=np.array([1]))
    assert_same(at(masked([0, 1, 2], BUCKET, 1), places=np.arange(3)), alone)
    still = at(masked([1], 40, 1))
    assert abs(still[0].cross_entropy - alone[0].cross_entropy) > 0.01


def test_dropout_of_attention_is_another_draw_at_another_length():
    """Drawn for all queries and keys at once."""
    settings = dataclasses.replace(MODEL, attention_dropout=0.3)
    at = functools.partial(sums_and_gradients, settings=MLM, model=settings)
    alone = at(masked([1], 40, 1), places=np.array([1]))
    padded = at(masked([0, 1, 2], BUCKET, 1), places=np.arange(3))
    assert abs(padded[0].cross_entropy - alone[0].cross_entropy) > 1e-3
    assert padded[0].positions == alone[0].positions


def test_masks_do_not_depend_on_the_padded_length():
    for cell, length in enumerate(LENGTHS):
        alone, padded = masked([cell], length, cell), masked([cell], BUCKET, cell)
        size = (alone.labels_BxM >= 0).sum()
        assert 2 < size < length and (alone.inputs_BxL == MASK).any()
        np.testing.assert_array_equal(padded.labels_BxM[0, :size], alone.labels_BxM[0, :size])
        np.testing.assert_array_equal(padded.slots_BxM[0, :size], alone.slots_BxM[0, :size])
        np.testing.assert_array_equal(padded.inputs_BxL[:, :length], alone.inputs_BxL)
        assert (padded.inputs_BxL[:, length:] == PAD).all()
        assert (padded.labels_BxM >= 0).sum() == size
