"""Masking: a literal reference, shares in binomial bounds, draws a cell owns, what is known."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as of_test
from hypothesis import strategies as st
from scipy import stats

from scaling.corpus.tokens import MASK, PAD
from scaling.corpus.vocabulary import Vocabulary
from scaling.pretrain import masking, selection

B, L, V = 300, 200, 400
BERT = masking.MaskingSettings(rate=0.15, mask_share=0.8, random_share=0.1, draw_special=False)
known_genes = jax.jit(masking.known_genes, static_argnums=1)


@pytest.fixture(scope="module")
def tokens():
    """BxL: distinct genes in random order, lengths from 1 to L."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((B, L), np.int32)
    for cell, length in zip(tokens, rng.integers(1, L + 1, B), strict=True):
        cell[:length] = rng.permutation(np.arange(2, V))[:length]
    return tokens


def draw(
    tokens, settings=BERT, seed=0, epoch=0, cells=None, special=2
) -> masking.MaskedCells:
    cells = np.arange(len(tokens), dtype=np.uint32) if cells is None else cells
    epochs = np.full(len(tokens), epoch)
    return masking.mask_cells(tokens, seed, epochs, cells, V, settings, special)


def selected_of(cells: masking.MaskedCells) -> np.ndarray:
    selected = np.zeros(cells.inputs_BxL.shape, bool)
    for cell, slot in np.argwhere(cells.labels_BxM >= 0):
        selected[cell, cells.slots_BxM[cell, slot]] = True
    return selected


def mixed(state: int) -> int:
    """SplitMix64's output, in whole numbers."""
    word = (state + 0x9E3779B97F4A7C15) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def test_the_words_are_those_of_the_published_generator():
    """First outputs after the seed 1234567, as published with other implementations."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in range(3)]
    assert [mixed(state) for state in states] == published
    assert [int(selection.mixed(np.uint64(state))) for state in states] == published


def literal(tokens, settings, seed, epoch, cell, special, most):
    """A cell's inputs, slots, labels, hidden and surplus, position by position."""
    key = mixed(mixed(mixed(seed) ^ epoch) ^ cell)
    words = [mixed((key + p * 0x9E3779B97F4A7C15) % 2**64) for p in range(len(tokens))]
    first = 0 if settings.draw_special else special
    chosen = [
        p for p, token in enumerate(tokens)
        if token != PAD and token >= first and words[p] // 2**32 < settings.rate * 2**32
    ]
    kept = sorted(sorted(chosen, key=lambda p: words[p])[:most])
    inputs, hidden = list(tokens), []
    for p in kept:
        treatment, gene = divmod(mixed(words[p]), 2**32)
        hidden.append(treatment < settings.mask_share * 2**32)
        if hidden[-1]:
            inputs[p] = MASK
        elif treatment < (settings.mask_share + settings.random_share) * 2**32:
            inputs[p] = first + gene * (V - first) // 2**32
    empty = most - len(kept)
    labels = [tokens[p] for p in kept] + empty * [-1]
    return inputs, kept + empty * [0], labels, hidden + empty * [False], len(chosen) - len(kept)


@of_test(max_examples=200)
@given(st.data())
def test_masks_are_those_of_a_literal_reference(data):
    length = data.draw(st.integers(1, 40))
    shape = st.lists(st.integers(0, V - 1), min_size=length, max_size=length)
    tokens = np.array(data.draw(st.lists(shape, min_size=1, max_size=3)), np.int32)
    rate, mask_share = (data.draw(st.floats(0.01, 0.99)) for _ in range(2))
    random_share = (1 - mask_share) * data.draw(st.sampled_from((0.0, 0.5, 0.99)))
    settings = masking.MaskingSettings(rate, mask_share, random_share, data.draw(st.booleans()))
    special, seed = data.draw(st.sampled_from((2, 4))), data.draw(st.integers(0, 2**63))
    epochs = np.array(data.draw(st.lists(st.integers(0, 9), min_size=3, max_size=3)))
    cells = np.array(data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)))
    keys = epochs[: len(tokens)].astype(np.int32), cells[: len(tokens)].astype(np.uint32)
    before = tokens.copy()
    with pytest.MonkeyPatch.context() as patch:
        most = data.draw(st.integers(1, length))
        patch.setattr(masking, "capacity", lambda length, rate: most)
        found = masking.mask_cells(tokens, seed, *keys, V, settings, special)
    np.testing.assert_array_equal(tokens, before)
    assert [of.dtype for of in found[:5]] == [np.int32] * 3 + [bool, np.int32]
    assert found.later is None
    for b, cell in enumerate(tokens.tolist()):
        names = settings, seed, int(epochs[b]), int(cells[b]), special, most
        for of, wanted in zip(found[:5], literal(cell, *names), strict=True):
            np.testing.assert_array_equal(of[b], wanted)


def test_a_cells_masks_do_not_depend_on_how_far_it_is_padded(tokens):
    short = tokens[(tokens != PAD).sum(1) <= 120]
    wide, cut = draw(short), draw(short[:, :128])
    assert len(short) > 100
    np.testing.assert_array_equal(cut.inputs_BxL, wide.inputs_BxL[:, :128])
    np.testing.assert_array_equal(selected_of(cut), selected_of(wide)[:, :128])
    most = cut.slots_BxM.shape[1]
    np.testing.assert_array_equal(cut.labels_BxM, wide.labels_BxM[:, :most])
    assert not cut.surplus_B.any() and not selected_of(wide)[:, 128:].any()


def test_empty_cells_have_no_slots():
    empty = draw(np.zeros((4, 32), np.int32), dataclasses.replace(BERT, draw_special=True))
    assert not any(of.any() for of in (empty.inputs_BxL, empty.slots_BxM, empty.hidden_BxM))
    assert (empty.labels_BxM == -1).all() and not empty.surplus_B.any()


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
    for special in (2, 4):
        cells = draw(tokens, always, special=special)
        assert cells.inputs_BxL[selected_of(cells)].min() == special
    cells = draw(tokens, dataclasses.replace(always, draw_special=True), special=4)
    assert cells.inputs_BxL[selected_of(cells)].min() == 0


def test_what_stands_around_a_cell_is_selected_only_where_asked():
    tokens = np.zeros((64, 40), np.int32)
    tokens[:, 0], tokens[:, 1:21], tokens[:, 21] = 2, np.arange(4, 24), 3
    cells = draw(tokens, special=4)
    assert cells.labels_BxM.max() < 24 and set(cells.labels_BxM.ravel()) == {-1, *range(4, 24)}
    assert (cells.inputs_BxL[:, 0] == 2).all() and (cells.inputs_BxL[:, 21] == 3).all()
    assert known_genes(cells, V)[:, np.array([PAD, 2, 3])].all()
    cells = draw(tokens, dataclasses.replace(BERT, draw_special=True), special=4)
    assert set(cells.labels_BxM.ravel()) == {-1, *range(2, 24)}


def test_known_is_what_stands_unselected(tokens):
    full = np.random.default_rng(1).integers(2, 60, (20, L)).astype(np.int32)  # genes stand twice
    for given_tokens in (tokens, full):
        cells = draw(given_tokens)
        selected, found = selected_of(cells), np.asarray(known_genes(cells, V))
        assert found.dtype == bool and found.shape == (len(given_tokens), V)
        for cell, of_cell in enumerate(given_tokens):
            known = np.zeros(V, bool)
            known[of_cell[~selected[cell]]] = True
            np.testing.assert_array_equal(found[cell], known)
            assert known[PAD] == (of_cell == PAD).any()


def test_surplus_positions_stay_unmasked_and_are_counted(tokens, monkeypatch):
    free = draw(tokens)
    monkeypatch.setattr(masking, "capacity", lambda length, rate: 20)
    cells = draw(tokens)
    wanted, kept = selected_of(free), selected_of(cells)
    assert cells.labels_BxM.shape == (B, 20) and (wanted & kept == kept).all()
    np.testing.assert_array_equal(kept.sum(1), np.minimum(wanted.sum(1), 20))
    np.testing.assert_array_equal(cells.surplus_B, wanted.sum(1) - kept.sum(1))
    assert 0 < (cells.surplus_B > 0).sum() < B
    np.testing.assert_array_equal(cells.inputs_BxL[~kept], tokens[~kept])
    dropped = wanted & ~kept
    known = np.asarray(known_genes(cells, V))
    assert known[np.nonzero(dropped)[0], tokens[dropped]].all()
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
    for a, b in zip(draw(tokens)[:5], cells[:5], strict=True):
        np.testing.assert_array_equal(a, b)
    shuffled = np.random.default_rng(1).permutation(B)
    elsewhere = draw(tokens[shuffled], cells=shuffled.astype(np.uint32))
    for a, b in zip(elsewhere[:5], cells[:5], strict=True):
        np.testing.assert_array_equal(a, b[shuffled])
    few = draw(tokens[:8], cells=np.arange(8, dtype=np.uint32))
    np.testing.assert_array_equal(few.inputs_BxL, cells.inputs_BxL[:8])


def test_draws_of_other_seeds_epochs_cells_and_positions_are_independent():
    """Each share of what both select, and of what both hide, is the product of their shares."""
    full = np.broadcast_to(np.arange(2, L + 2, dtype=np.int32), (B, L))
    cells = draw(full)
    selected, hidden = selected_of(cells), cells.inputs_BxL == MASK
    others = [{"epoch": 1}, {"seed": 1}, {"epoch": 2, "seed": 3}]
    others += [{"cells": np.arange(by, B + by, dtype=np.uint32)} for by in (1, 2, 256, 2**31)]
    pairs = [(selected, selected_of(draw(full, **o)), 0.15) for o in others]
    pairs += [(hidden, draw(full, **o).inputs_BxL == MASK, 0.12) for o in others]
    for away in (1, 2, 7, 64):
        pairs += [(of[:, away:], of[:, :-away], share)
                  for of, share in ((selected, 0.15), (hidden, 0.12))]
    # The words of one cell are not those of the next, moved by a position.
    pairs += [(selected[1:, :-1], selected[:-1, 1:], 0.15)]
    for one, other, share in pairs:
        assert within((one & other).sum(), one.size, share**2)
    # Whether a selected position is hidden says nothing of the gene that another gets, nor of how
    # small the draw was that selected it.
    random = selected & ~hidden & (cells.inputs_BxL != full)
    high = cells.inputs_BxL[random] >= (V + 2) // 2
    assert within(high.sum(), high.size, 0.5)
    beside = hidden[:, :-1][random[:, 1:]]
    assert within(beside.sum(), beside.size, 0.12)
    small = selected_of(draw(full, dataclasses.replace(BERT, rate=0.05)))
    assert (small & selected == small).all() and within((small & hidden).sum(), small.sum(), 0.8)


@pytest.mark.parametrize("band", [(0.0, 0.5), (0.25, 0.55), (0.8, 1.0)])
def test_a_band_masks_as_many_genes_of_its_ranks_alone(tokens, band):
    cells = draw(tokens, dataclasses.replace(BERT, strategy="band", band=band))
    selected, length = selected_of(cells), (tokens != PAD).sum(1, keepdims=True)
    rank = np.arange(L)
    inside = (rank >= band[0] * length) & (rank < band[1] * length) & (tokens != PAD)
    assert not selected[~inside].any()
    share = 0.15 / (band[1] - band[0])
    assert within((selected & inside).sum(), inside.sum(), share)
    whole = draw(tokens, dataclasses.replace(BERT, strategy="band"))
    for a, b in zip(whole[:5], draw(tokens)[:5], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_band_counts_genes_and_not_what_stands_around_them():
    tokens = np.zeros((200, 40), np.int32)
    tokens[:, 0], tokens[:, 1:21], tokens[:, 21] = 2, np.arange(4, 24), 3
    half = dataclasses.replace(BERT, strategy="band", band=(0.5, 1.0))
    selected = selected_of(draw(tokens, half, special=4))
    assert set(np.flatnonzero(selected.any(0))) == set(range(11, 21))


PROGRAMS = [[2, 3, 4, 5], [8, 6], list(range(100, 150)), [7], list(range(20, 40)), [], [399]]


def programs_of(lists=PROGRAMS) -> selection.Programs:
    starts = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return selection.Programs(starts, np.array(sum(lists, []), np.int64))


def draw_programs(tokens, rate=0.15, **options):
    settings = dataclasses.replace(BERT, rate=rate, strategy="programs", programs="x.gmt")
    cells = np.arange(len(tokens), dtype=np.uint32)
    draws = options.get("seed", 0), np.zeros(len(tokens), int), cells
    return masking.mask_cells(tokens, *draws, V, settings, 2, programs_of())


def test_programs_are_masked_whole_until_they_hold_the_share(tokens):
    cells, chosen = draw_programs(tokens), set()
    for cell, labels in zip(tokens, cells.labels_BxM, strict=True):
        genes, masked = set(cell[cell != PAD]), set(labels[labels >= 0])
        parts = [masked & set(program) for program in PROGRAMS]
        whole = [genes & set(p) == of for p, of in zip(PROGRAMS, parts, strict=True)]
        # What is masked is a union of programs, each with all the genes that the cell has of it.
        assert masked == set().union(*(of for of, w in zip(parts, whole, strict=True) if w))
        assert len(masked) <= len(genes) // 2
        # The last one taken reached the share: without some program there was less.
        assert len(masked) - max(map(len, parts)) < 0.15 * len(genes)
        chosen.add(tuple(sorted(k for k, w in enumerate(whole) if w and parts[k])))
    assert len(chosen) > 10 and not cells.surplus_B.any()
    few = draw_programs(tokens[:7])
    np.testing.assert_array_equal(few.labels_BxM, cells.labels_BxM[:7])
    other = draw_programs(tokens, seed=1)
    assert (other.labels_BxM != cells.labels_BxM).any()


def test_no_program_takes_more_than_half_of_a_cell():
    cell = np.arange(2, 12, dtype=np.int32)[None]
    settings = dataclasses.replace(BERT, rate=0.3, strategy="programs", programs="x.gmt")
    for program, masked in (([2, 3, 4, 5, 6, 7], 0), ([2, 3, 4, 5, 6], 5)):
        draws = 0, np.zeros(1, int), np.zeros(1, np.uint32)
        found = masking.mask_cells(cell, *draws, V, settings, 2, programs_of([program]))
        assert (found.labels_BxM >= 0).sum() == masked


def test_programs_are_drawn_evenly():
    full = np.broadcast_to(np.arange(2, 202, dtype=np.int32), (4_000, 200))
    lists = [list(range(start, start + 30)) for start in range(2, 202, 40)]
    settings = dataclasses.replace(BERT, rate=0.15, strategy="programs", programs="x.gmt")
    draws = 0, np.zeros(len(full), int), np.arange(len(full), dtype=np.uint32)
    found = masking.mask_cells(full, *draws, V, settings, 2, programs_of(lists))
    firsts = [(found.labels_BxM == genes[0]).any(1).sum() for genes in lists]
    assert sum(firsts) == len(full)  # one program of 30 of 200 genes reaches 15 %
    assert stats.chisquare(firsts).pvalue > 1e-6


def test_programs_are_read_in_the_vocabularys_ids(tmp_path):
    vocabulary = Vocabulary(("E1", "E2", "E3"), np.ones(3))
    gmt, names = tmp_path / "sets.gmt", tmp_path / "names.csv"
    gmt.write_text("one\tabout\tE3\tE9\tE1\ntwo\tabout\tB\n")
    names.write_text("gene_name,ensembl_id\nB,E2\n")
    found = selection.read_programs(gmt, names, vocabulary)
    assert found.starts.tolist() == [0, 2, 3] and found.tokens.tolist() == [4, 2, 3]
    gmt.write_text("one\tabout\tB\n")
    with pytest.raises(ValueError, match="no gene of its 1 programs .* masking.gene_names"):
        selection.read_programs(gmt, "", vocabulary)


def test_masks_of_scores_are_uniform_whatever_was_trained_with():
    trained = dataclasses.replace(BERT, rate=0.3, strategy="band", band=(0.0, 0.5))
    assert trained.of_scores() == dataclasses.replace(BERT, rate=0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, "masking.rate is 0.0"),
        ({"rate": 1.0}, "masking.rate is 1.0"),
        ({"mask_share": -0.1}, "mask_share -0.1"),
        ({"random_share": 0.3}, "add up to 1 at most"),
        ({"strategy": "bands"}, "masking.strategy is 'bands'"),
        ({"band": (0.5, 0.6)}, "at least masking.rate 0.15 apart"),
        ({"band": (0.5, 1.2)}, "shares of the ranks from 0 to 1"),
        ({"strategy": "programs"}, "name a GMT file"),
    ],
)
def test_impossible_shares_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BERT, **wrong)
