"""Batches: each cell once an epoch, a function of (seed, step), cut over hosts without loss."""

import hashlib

import jax
import numpy as np
import pytest

from scaling.pretrain.batches import Batches, Plan, cell_hashes, iterate


@pytest.mark.parametrize(("cells", "batch"), [(24, 8), (25, 8), (3, 8), (8, 8)])
def test_every_cell_stands_once_in_every_epoch(cells, batch):
    plan, steps = Plan(cells, batch, seed=3), 3 * cells
    chosen, epochs = (np.concatenate(x) for x in zip(*map(plan.at, range(steps)), strict=True))
    assert len(chosen) == steps * batch and (np.diff(epochs) >= 0).all()
    orders = [chosen[epochs == epoch] for epoch in range(3 * batch)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(cells))
    assert len({tuple(order) for order in orders}) > 3


def test_a_batch_is_a_function_of_seed_and_step():
    plan, again, other = Plan(40, 8, seed=0), Plan(40, 8, seed=0), Plan(40, 8, seed=1)
    wanted = [plan.at(step) for step in range(12)]
    for step in (11, 3, 7, 0):  # in any order, with other reads between
        np.testing.assert_array_equal(again.at(step), wanted[step])
    assert any((other.at(step)[0] != wanted[step][0]).any() for step in range(3))


@pytest.fixture
def source(tiny_corpus):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    return Batches(tiny_corpus, rows, Plan(20, 8, seed=0), 7, length=128)


def test_a_batch_holds_the_cells_that_the_plan_names(source, tiny_corpus):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    assert len(source) == 7
    for step in range(7):
        chosen, epochs = Plan(20, 8, seed=0).at(step)
        batch = source[step]
        np.testing.assert_array_equal(batch["tokens"], tiny_corpus.tokens(rows[chosen], 128))
        ids = tiny_corpus.obs["cell_id"].to_numpy()[rows[chosen]]
        hashes = [hashlib.blake2b(i.encode(), digest_size=4).digest() for i in ids]
        wanted = [int.from_bytes(h, "little") for h in hashes]
        assert batch["cell"].dtype == np.uint32 and batch["cell"].tolist() == wanted
        assert batch["epoch"].dtype == np.int32 and batch["epoch"].tolist() == epochs.tolist()


def test_hosts_read_parts_that_make_up_the_batch(source, monkeypatch):
    whole = [source[step] for step in range(7)]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    parts = []
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts.append([source[step] for step in range(7)])
    for step in range(7):
        for name, values in whole[step].items():
            of_hosts = [part[step][name] for part in parts]
            assert {len(x) for x in of_hosts} == {2}
            np.testing.assert_array_equal(np.concatenate(of_hosts), values)


def test_an_iterator_goes_on_where_its_state_was_taken(source):
    iterator = iterate(source)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = [batch["cell"].tolist() for batch in iterator]
    again = iterate(source)
    again.set_state(state)
    assert [batch["cell"].tolist() for batch in again] == rest
    assert rest == [source[step]["cell"].tolist() for step in range(3, 7)]


def test_cells_of_other_names_have_other_hashes():
    hashes = cell_hashes(np.array([f"file:{k}" for k in range(2000)]))
    assert hashes.dtype == np.uint32 and len(np.unique(hashes)) == 2000
    assert hashes.max() > 2**31
