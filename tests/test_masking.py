"""Masking: shares within binomial bounds, nothing special touched, draws that a cell owns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scaling.corpus.tokens import MASK, PAD
from scaling.pretrain import masking

B, L, V = 300, 200, 400
BERT = masking.MaskingSettings(rate=0.15, mask_share=0.8, random_share=0.1, draw_special=False)
mask_cells = jax.jit(masking.mask_cells, static_argnums=(2, 3, 4))


@pytest.fixture(scope="module")
def tokens():
    """BxL: distinct genes in random order, lengths from 1 to L."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((B, L), np.int32)
    for cell, length in zip(tokens, rng.integers(1, L + 1, B), strict=True):
        cell[:length] = rng.permutation(np.arange(2, V))[:length]
    return tokens


def draw(tokens, settings=BERT, seed=0, epoch=0, cells=None) -> masking.MaskedCells:
    cells = np.arange(len(tokens), dtype=np.uint32) if cells is None else cells
    keys = masking.draw_keys(seed, jnp.full(len(tokens), epoch, jnp.int32), cells)
    return jax.device_get(mask_cells(tokens, keys, V, settings))


def selected_of(cells: masking.MaskedCells) -> np.ndarray:
    selected = np.zeros(cells.inputs_BxL.shape, bool)
    for cell, slot in np.argwhere(cells.labels_BxM >= 0):
        selected[cell, cells.slots_BxM[cell, slot]] = True
    return selected


def test_a_cells_masks_do_not_depend_on_how_far_it_is_padded(tokens):
    short = tokens[(tokens != PAD).sum(1) <= 120]
    wide, cut = draw(short), draw(short[:, :128])
    assert len(short) > 100
    np.testing.assert_array_equal(cut.inputs_BxL, wide.inputs_BxL[:, :128])
    np.testing.assert_array_equal(selected_of(cut), selected_of(wide)[:, :128])
    np.testing.assert_array_equal(cut.known_BxV, wide.known_BxV)
    assert not cut.surplus_B.any() and not selected_of(wide)[:, 128:].any()


def within(successes: int, trials: int, share: float) -> bool:
    """A fair draw fails this once in a million."""
    return stats.binomtest(int(successes), int(trials), share).pvalue > 1e-6


def test_shares_are_those_of_bert(tokens):
    cells = draw(tokens)
    selected, real = selected_of(cells), tokens != PAD
    assert within(selected.sum(), real.sum(), 0.15)
    # A random gene is the true one once in V - 2 draws; it then counts as unchanged.
    hidden = selected & (cells.inputs_BxL == MASK)
    same = selected & (cells.inputs_BxL == tokens)
    other = selected & ~hidden & ~same
    random_share = 0.1 * (1 - 1 / (V - 2))
    assert within(hidden.sum(), selected.sum(), 0.8)
    assert within(other.sum(), selected.sum(), random_share)
    assert within(same.sum(), selected.sum(), 0.2 - random_share)
    # Every rank is as likely as any other.
    assert stats.chisquare(*_by_rank(selected, real)).pvalue > 1e-6


def _by_rank(selected, real):
    observed = selected.sum(0).reshape(20, -1).sum(1)
    expected = real.sum(0).reshape(20, -1).sum(1)
    return observed, expected * observed.sum() / expected.sum()


def test_only_selected_positions_change_and_carry_labels(tokens):
    cells = draw(tokens)
    selected = selected_of(cells)
    assert not selected[tokens == PAD].any()
    np.testing.assert_array_equal(cells.inputs_BxL[~selected], tokens[~selected])
    filled = cells.labels_BxM >= 0
    assert filled.sum() == selected.sum()
    at_slots = np.take_along_axis(tokens, cells.slots_BxM, axis=1)
    np.testing.assert_array_equal(cells.labels_BxM[filled], at_slots[filled])
    inputs_at_slots = np.take_along_axis(cells.inputs_BxL, cells.slots_BxM, axis=1)
    np.testing.assert_array_equal(cells.hidden_BxM, filled & (inputs_at_slots == MASK))
    assert (cells.slots_BxM[~filled] == 0).all()
    for slots, real in zip(cells.slots_BxM, filled, strict=True):
        assert (np.diff(slots[real]) > 0).all() and not real[real.sum():].any()


def test_random_genes_are_special_only_where_asked(tokens):
    always = dataclasses.replace(BERT, mask_share=0.0, random_share=1.0)
    drawn = np.concatenate([
        cells.inputs_BxL[selected_of(cells)]
        for cells in (draw(tokens, always, seed=seed) for seed in range(5))
    ])
    assert drawn.min() == 2 and drawn.max() == V - 1
    assert stats.chisquare(np.bincount(drawn, minlength=V)[2:]).pvalue > 1e-6
    special = dataclasses.replace(always, draw_special=True)
    drawn = np.concatenate([
        cells.inputs_BxL[selected_of(cells)]
        for cells in (draw(tokens, special, seed=seed) for seed in range(5))
    ])
    assert drawn.min() == PAD and (drawn == MASK).any() and drawn.max() == V - 1


def test_random_genes_come_after_all_tokens_that_are_none(tokens):
    always = dataclasses.replace(BERT, mask_share=0.0, random_share=1.0)
    keys = masking.draw_keys(0, jnp.zeros(B, jnp.int32), np.arange(B, dtype=np.uint32))
    for special in (2, 4):
        cells = jax.device_get(mask_cells(tokens, keys, V, always, special))
        assert cells.inputs_BxL[selected_of(cells)].min() == special
    asked = dataclasses.replace(always, draw_special=True)
    cells = jax.device_get(mask_cells(tokens, keys, V, asked, 4))
    assert cells.inputs_BxL[selected_of(cells)].min() == 0


def test_what_stands_around_a_cell_is_selected_only_where_asked():
    tokens = np.zeros((64, 40), np.int32)
    tokens[:, 0], tokens[:, 1:21], tokens[:, 21] = 2, np.arange(4, 24), 3
    keys = masking.draw_keys(0, jnp.zeros(64, jnp.int32), np.arange(64, dtype=np.uint32))
    cells = jax.device_get(mask_cells(tokens, keys, V, BERT, 4))
    assert cells.labels_BxM.max() < 24 and set(cells.labels_BxM.ravel()) == {-1, *range(4, 24)}
    assert (cells.inputs_BxL[:, 0] == 2).all() and (cells.inputs_BxL[:, 21] == 3).all()
    assert cells.known_BxV[:, [PAD, 2, 3]].all()
    as_published = dataclasses.replace(BERT, draw_special=True)
    cells = jax.device_get(mask_cells(tokens, keys, V, as_published, 4))
    assert set(cells.labels_BxM.ravel()) == {-1, *range(2, 24)}


def test_known_is_what_stands_unselected(tokens):
    cells = draw(tokens)
    selected = selected_of(cells)
    for cell in range(B):
        known = np.zeros(V, bool)
        known[tokens[cell, ~selected[cell]]] = True
        np.testing.assert_array_equal(cells.known_BxV[cell], known)
        assert known[PAD] == (tokens[cell] == PAD).any()


def test_surplus_positions_stay_unmasked_and_are_counted(tokens, monkeypatch):
    free = draw(tokens)
    monkeypatch.setattr(masking, "capacity", lambda length, rate: 20)
    settings = dataclasses.replace(BERT, rate=0.15, random_share=0.10000001)  # traced anew
    cells = draw(tokens, settings)
    wanted, kept = selected_of(free), selected_of(cells)
    assert cells.labels_BxM.shape == (B, 20) and (wanted & kept == kept).all()
    np.testing.assert_array_equal(kept.sum(1), np.minimum(wanted.sum(1), 20))
    np.testing.assert_array_equal(cells.surplus_B, wanted.sum(1) - kept.sum(1))
    assert 0 < (cells.surplus_B > 0).sum() < B
    np.testing.assert_array_equal(cells.inputs_BxL[~kept], tokens[~kept])
    dropped = wanted & ~kept
    assert cells.known_BxV[np.nonzero(dropped)[0], tokens[dropped]].all()
    # Which ones stay unmasked is chance, not rank: early and late ones alike.
    over = wanted.sum(1) > 20
    places = [np.flatnonzero(drop[want]) / want.sum() for drop, want in
              zip(dropped[over], wanted[over], strict=True)]
    assert 0.4 < np.concatenate(places).mean() < 0.6


def test_the_capacity_is_enough_but_for_one_cell_in_a_million():
    assert masking.capacity(2048, 0.15) == 384
    for length in (64, 512, 2048, 4094):
        surplus = stats.binom.sf(masking.capacity(length, 0.15), length, 0.15)
        assert surplus < 4e-6
    assert masking.capacity(8, 0.15) == 8


def test_a_draw_is_a_function_of_seed_epoch_and_cell(tokens):
    cells = draw(tokens)
    for a, b in zip(draw(tokens), cells, strict=True):
        np.testing.assert_array_equal(a, b)
    shuffled = np.random.default_rng(1).permutation(B)
    elsewhere = draw(tokens[shuffled], cells=shuffled.astype(np.uint32))
    for a, b in zip(elsewhere, cells, strict=True):
        np.testing.assert_array_equal(a, b[shuffled])
    few = draw(tokens[:8], cells=np.arange(8, dtype=np.uint32))
    np.testing.assert_array_equal(few.inputs_BxL, cells.inputs_BxL[:8])
    selected = selected_of(cells)
    for changed in ({"epoch": 1}, {"seed": 1}, {"cells": np.arange(1, B + 1, dtype=np.uint32)}):
        other = selected_of(draw(tokens, **changed))
        # Independent draws of 15 % share 15 % of what the first selected.
        assert (other & selected).sum() < 0.25 * selected.sum()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, "masking.rate is 0.0"),
        ({"rate": 1.0}, "masking.rate is 1.0"),
        ({"mask_share": -0.1}, "mask_share -0.1"),
        ({"random_share": 0.3}, "add up to 1 at most"),
    ],
)
def test_impossible_shares_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **wrong)
