"""Plans: each cell once an epoch, a function of (seed, step), batches of cells of like lengths."""

import itertools

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.pretrain.plan import MULTIPLE, Plan, padded_lengths

TRAINED_ON = "onek1k_40_donors pbmc_3_chemistries pbmc_7_studies pbmc_3k pbmc_frozen_a".split()
buckets_of_cells = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(np.array)
batches = st.integers(1, 12)
seeds = st.integers(0, 5)
ends = st.integers(1, 9).map(lambda k: k * MULTIPLE)  # lengths that need no padding


def padding(lengths: np.ndarray, padded: tuple[int, ...], batch: int, epochs: int) -> float:
    """Share of positions without a token, each batch as long as its longest cell needs."""
    lengths = lengths.clip(max=padded[-1])
    plan = Plan(len(lengths), batch, 0, np.searchsorted(padded, lengths))
    of_batches = [lengths[plan.at(step)[0]] for step in range(epochs * len(lengths) // batch)]
    longest = np.searchsorted(padded, [b.max() for b in of_batches])
    return 1 - np.sum(of_batches) / (batch * np.array(padded)[longest].sum())


@pytest.mark.parametrize(("cells", "batch"), [(24, 8), (25, 8), (3, 8), (8, 8)])
def test_every_cell_stands_once_in_every_epoch(cells, batch):
    plan, steps = Plan(cells, batch, seed=3), 3 * cells
    chosen, epochs = (np.concatenate(x) for x in zip(*map(plan.at, range(steps)), strict=True))
    assert len(chosen) == steps * batch and (np.diff(epochs) >= 0).all()
    orders = [chosen[epochs == epoch] for epoch in range(3 * batch)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(cells))
    assert len({tuple(order) for order in orders}) > 3


@given(buckets_of_cells, batches, seeds, st.integers(1, 4))
def test_every_cell_stands_once_in_every_epoch_whatever_its_bucket(buckets, batch, seed, epochs):
    plan, cells = Plan(len(buckets), batch, seed, buckets), len(buckets)
    steps = -(-epochs * cells // batch)
    chosen, epoch = (np.concatenate(x) for x in zip(*map(plan.at, range(steps)), strict=True))
    np.testing.assert_array_equal(epoch, np.arange(steps * batch) // cells)
    for order in chosen[: epochs * cells].reshape(epochs, cells):
        np.testing.assert_array_equal(np.sort(order), np.arange(cells))


@given(st.integers(1, 60), batches, seeds, st.integers(0, 9))
def test_one_bucket_is_as_none(cells, batch, seed, step):
    chosen, epochs = Plan(cells, batch, seed).at(step)
    same, of_same = Plan(cells, batch, seed, np.zeros(cells, int)).at(step)
    np.testing.assert_array_equal(same, chosen)
    np.testing.assert_array_equal(of_same, epochs)
    first = np.random.default_rng((seed, int(epochs[0]))).permutation(cells)
    assert chosen[0] == first[step * batch % cells]


@given(buckets_of_cells, batches, seeds, st.randoms(use_true_random=False))
def test_a_batch_is_a_function_of_seed_and_step(buckets, batch, seed, random):
    steps = list(range(12))
    wanted = [Plan(len(buckets), batch, seed, buckets).at(step) for step in steps]
    random.shuffle(steps)
    again = Plan(len(buckets), batch, seed, buckets)
    for step in steps:  # in any order, with other reads between
        np.testing.assert_array_equal(again.at(step), wanted[step])


def test_another_seed_gives_other_batches():
    for buckets in (None, np.arange(40) % 3):
        plan, other = Plan(40, 8, 0, buckets), Plan(40, 8, 1, buckets)
        assert any((other.at(step)[0] != plan.at(step)[0]).any() for step in range(3))


@given(buckets_of_cells, batches, seeds)
def test_a_bucket_mixes_with_the_next_in_one_batch_of_an_epoch_at_most(buckets, batch, seed):
    plan, cells = Plan(len(buckets), batch, seed, buckets), len(buckets)
    for epoch in range(3):
        inside = range(-(-epoch * cells // batch), (epoch + 1) * cells // batch)
        of_batches = [set(buckets[plan.at(step)[0]]) for step in inside]
        assert sum(len(b) - 1 for b in of_batches) < len(set(buckets))


def test_the_batch_that_epochs_share_is_of_the_shortest():
    buckets = np.repeat([2, 0, 1], [30, 20, 30])
    plan = Plan(80, 12, 0, buckets)
    for step in (80 // 12, 160 // 12):
        chosen, epochs = plan.at(step)
        assert len(set(epochs)) == 2 and not buckets[chosen].any()


def test_buckets_take_turns_at_random():
    buckets = np.random.default_rng(0).integers(0, 3, 2000)
    plan = Plan(2000, 10, 0, buckets)
    epochs = [[buckets[plan.at(s)[0]].max() for s in range(k, k + 200)] for k in (0, 200)]
    assert epochs[0] != epochs[1]
    for of_epoch in epochs:
        assert {*of_epoch[:50]} == {*of_epoch[-50:]} == {0, 1, 2}
        changes = np.count_nonzero(np.diff(of_epoch))
        assert 100 < changes < 165  # of 199; two draws of three differ at two of three steps
    inside = [plan.at(s)[0] for s in range(400)]
    assert len({frozenset(cells) for cells in inside}) == 400  # and who stands with whom is new


@given(
    st.lists(st.integers(1, 150) | ends, min_size=1, max_size=30).map(np.array),
    st.integers(1, 140),
    st.integers(2, 4),
)
def test_padded_lengths_need_the_fewest_positions(lengths, limit, count):
    def positions(padded):
        cut = lengths.clip(max=limit)
        return sum(min(p for p in padded if p >= length) for length in cut)

    padded = padded_lengths(lengths, limit, count)
    longest = min(-(-min(lengths.max(), limit) // MULTIPLE) * MULTIPLE, limit)
    assert len(padded) <= count and list(padded) == sorted(set(padded)) and padded[-1] == longest
    assert all(p % MULTIPLE == 0 or p == limit for p in padded)
    shorter = range(MULTIPLE, longest, MULTIPLE)
    others = (c for n in range(count) for c in itertools.combinations(shorter, n))
    assert positions(padded) == min(positions((*other, longest)) for other in others)


@pytest.mark.parametrize("lengths", [[1], [3000, 5], [50]])
def test_one_padded_length_is_the_limit(lengths):
    assert padded_lengths(np.array(lengths), 100, 1) == (100,)


def test_padding_of_real_cells_is_below_a_twentieth(real_data):
    """Genes found in each cell of the five files of experiments/blood; L is 2,048."""
    lengths = []
    for name in TRAINED_ON:
        with h5py.File(real_data / f"{name}.h5ad") as file:
            lengths.append(np.diff(file["X/indptr"][:]))
    lengths = np.concatenate(lengths)
    assert len(lengths) == 18_367
    padded = padded_lengths(lengths, 2048, 32)
    assert padding(lengths, padded, 96, 2) < 0.05 < 0.5 < padding(lengths, (2048,), 96, 2)
