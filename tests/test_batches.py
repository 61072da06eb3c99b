"""Batches: cells the plan names, as far padded as they need, cut over any hosts without loss."""

import hashlib
import types
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus.shards import pad
from scaling.pretrain.batches import Batches, cell_hashes, iterate
from scaling.pretrain.plan import Plan


@pytest.fixture
def source(tiny_corpus):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    return Batches(tiny_corpus, rows, Plan(20, 8, seed=0), 7, (128,))


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


PADDED = (16, 32, 64)


def corpus_of(lengths) -> types.SimpleNamespace:
    """Stands in for a corpus: cell k has as many tokens as asked for, all of them k + 2."""
    obs = pd.DataFrame({"cell_id": [f"cell:{k}" for k in range(len(lengths))], "length": lengths})
    tokens = [np.full(n, k + 2, np.uint16) for k, n in enumerate(lengths)]
    return types.SimpleNamespace(
        obs=obs, folder="none", lengths=lambda rows: np.asarray(lengths)[rows],
        tokens=lambda rows, length: pad([tokens[r] for r in rows], length),
    )


def on_host(host: int, hosts: int):
    return mock.patch.multiple(jax, process_index=lambda: host, process_count=lambda: hosts)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_another_number_of_hosts_goes_on_with_exactly_the_cells_left(data):
    lengths = np.array(data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=40)))
    before, after = data.draw(st.permutations([1, 2, 4]))[:2]
    batch, epochs = 4 * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    steps = -(-epochs * len(lengths) // batch)
    taken, seed = data.draw(st.integers(0, steps)), data.draw(st.integers(0, 3))
    buckets = np.searchsorted(PADDED, lengths.clip(max=64))
    corpus, states = corpus_of(lengths), []

    def on(hosts: int, state=None) -> list[tuple]:
        """Each batch left: its cells on all hosts, their epochs, and its length."""
        parts = []
        for host in range(hosts):
            with on_host(host, hosts):
                plan = Plan(len(lengths), batch, seed, buckets)
                iterator = iterate(Batches(corpus, np.arange(len(lengths)), plan, steps, PADDED))
                if state is not None:
                    iterator.set_state(state)
                    parts.append(list(iterator))
                    continue
                parts.append([next(iterator) for _ in range(taken)])
                states.append(iterator.get_state())
                iterator.close()
        shapes = [[b["tokens"].shape for b in part] for part in parts]
        assert all(of_host == shapes[0] for of_host in shapes)
        joined = [
            {k: np.concatenate([b[k] for b in of_hosts]) for k in of_hosts[0]}
            for of_hosts in zip(*parts, strict=True)
        ]
        return [(b["tokens"][:, 0] - 2, b["epoch"], b["tokens"].shape[1]) for b in joined]

    read = on(before)
    assert all(state == states[0] for state in states)
    read += on(after, states[0])
    assert len(read) == steps
    for cells, _, length in read:
        longest = lengths[cells].clip(max=64).max()
        assert length == min(p for p in PADDED if p >= longest)
    cells, passes = (np.concatenate([b[k] for b in read]) for k in (0, 1))
    for epoch in range(epochs):
        np.testing.assert_array_equal(np.sort(cells[passes == epoch]), np.arange(len(lengths)))


def test_the_share_of_padding_is_that_of_the_batches():
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    plan = Plan(50, 8, 0, np.searchsorted(PADDED, lengths.clip(max=64)))
    source = Batches(corpus_of(lengths), np.arange(50), plan, 19, PADDED)
    tokens = [source[step]["tokens"] for step in range(19)]
    empty = sum((t == 0).sum() for t in tokens) / sum(t.size for t in tokens)
    assert source.padding() == pytest.approx(empty) and {t.shape[1] for t in tokens} == {*PADDED}


def test_cells_of_other_names_have_other_hashes():
    hashes = cell_hashes(np.array([f"file:{k}" for k in range(2000)]))
    assert hashes.dtype == np.uint32 and len(np.unique(hashes)) == 2000
    assert hashes.max() > 2**31
