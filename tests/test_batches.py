"""Batches: cells the plan names, as far padded as they need, cut over any hosts without loss."""

import dataclasses
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
from scaling.corpus.vocabulary import Vocabulary
from scaling.pretrain import masking
from scaling.pretrain.batches import Batches, cell_hashes, iterate
from scaling.pretrain.plan import Plan

MASKS = masking.MaskingSettings(0.15, 0.8, 0.1, False)
READABLE = masking.MaskingSettings(0.15, 0.0, 0.0, False)  # the inputs are the tokens


def assert_equal(mine: masking.MaskedCells, theirs: masking.MaskedCells):
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def source(tiny_corpus):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    return Batches(tiny_corpus, rows, Plan(20, 8, seed=0), 7, (128,), MASKS, 3)


def test_a_batch_holds_the_cells_that_the_plan_names_under_masks_of_their_own(
    source, tiny_corpus
):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    genes = tiny_corpus.vocabulary
    assert len(source) == 7 and Plan(20, 8, seed=0).at(6)[1].max() == 2
    for step in range(7):
        chosen, epochs = Plan(20, 8, seed=0).at(step)
        ids = tiny_corpus.obs["cell_id"].to_numpy()[rows[chosen]]
        hashes = [hashlib.blake2b(i.encode(), digest_size=4).digest() for i in ids]
        draw = 3, epochs, np.array([int.from_bytes(h, "little") for h in hashes])
        tokens = tiny_corpus.tokens(rows[chosen], 128)
        assert_equal(source[step], masking.mask_cells(tokens, *draw, len(genes), MASKS, 2))


def test_masks_know_the_vocabularys_special_tokens(tiny_corpus):
    special = ("<pad>", "<mask>", "<a>", "<b>")
    genes = dataclasses.replace(tiny_corpus.vocabulary, special=special)
    corpus = dataclasses.replace(tiny_corpus, vocabulary=genes)
    always = masking.MaskingSettings(0.9, 0.0, 1.0, False)
    rows = np.arange(16)
    source = Batches(corpus, rows, Plan(16, 16, 0), 1, (128,), always, 0)
    tokens = corpus.tokens(rows[Plan(16, 16, 0).at(0)[0]], 128)
    drawn = source[0].inputs_BxL[source[0].inputs_BxL != tokens]
    assert drawn.min() == 4 and drawn.max() >= len(genes) - 4
    assert (source[0].labels_BxM[source[0].labels_BxM >= 0] >= 4).all()


def test_hosts_read_parts_that_make_up_the_batch(source, monkeypatch):
    whole = [source[step] for step in range(7)]
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    parts = []
    for host in range(4):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        parts.append([source[step] for step in range(7)])
    for step in range(7):
        of_hosts = [part[step] for part in parts]
        assert {len(array) for part in of_hosts for array in part} == {2}
        assert_equal(jax.tree.map(lambda *of: np.concatenate(of), *of_hosts), whole[step])


def test_an_iterator_goes_on_where_its_state_was_taken(source):
    iterator = iterate(source)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = list(iterator)
    again = iterate(source)
    again.set_state(state)
    for step, (mine, theirs) in enumerate(zip(again, rest, strict=True), 3):
        assert_equal(mine, theirs)
        assert_equal(mine, source[step])
    assert len(rest) == 4


PADDED = (16, 32, 64)


def corpus_of(lengths) -> types.SimpleNamespace:
    """Stands in for a corpus: cell k has as many tokens as asked for, all of them k + 2."""
    obs = pd.DataFrame({"cell_id": [f"cell:{k}" for k in range(len(lengths))], "length": lengths})
    tokens = [np.full(n, k + 2, np.uint16) for k, n in enumerate(lengths)]
    genes = Vocabulary([f"gene {k}" for k in range(80)], np.ones(80))
    return types.SimpleNamespace(
        obs=obs, folder="none", vocabulary=genes, lengths=lambda rows: np.asarray(lengths)[rows],
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
        """Each batch left: its cells on all hosts, and its length."""
        parts = []
        for host in range(hosts):
            with on_host(host, hosts):
                plan = Plan(len(lengths), batch, seed, buckets)
                rows = np.arange(len(lengths))
                iterator = iterate(Batches(corpus, rows, plan, steps, PADDED, READABLE, 0))
                if state is not None:
                    iterator.set_state(state)
                    parts.append(list(iterator))
                    continue
                parts.append([next(iterator) for _ in range(taken)])
                states.append(iterator.get_state())
                iterator.close()
        shapes = [[batch.inputs_BxL.shape for batch in part] for part in parts]
        assert all(of_host == shapes[0] for of_host in shapes)
        joined = [
            np.concatenate([batch.inputs_BxL for batch in of_hosts])
            for of_hosts in zip(*parts, strict=True)
        ]
        return [(tokens[:, 0] - 2, tokens.shape[1]) for tokens in joined]

    read = on(before)
    assert all(state == states[0] for state in states)
    read += on(after, states[0])
    assert len(read) == steps
    for cells, length in read:
        longest = lengths[cells].clip(max=64).max()
        assert length == min(p for p in PADDED if p >= longest)
    stream = np.concatenate([cells for cells, _ in read])
    passes = stream[: epochs * len(lengths)].reshape(epochs, -1)
    np.testing.assert_array_equal(np.sort(passes), epochs * [np.arange(len(lengths))])


def test_the_share_of_padding_is_that_of_the_batches():
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    plan = Plan(50, 8, 0, np.searchsorted(PADDED, lengths.clip(max=64)))
    source = Batches(corpus_of(lengths), np.arange(50), plan, 19, PADDED, READABLE, 0)
    tokens = [source[step].inputs_BxL for step in range(19)]
    empty = sum((t == 0).sum() for t in tokens) / sum(t.size for t in tokens)
    assert source.padding() == pytest.approx(empty) and {t.shape[1] for t in tokens} == {*PADDED}


def test_cells_of_other_names_have_other_hashes():
    hashes = cell_hashes(np.array([f"file:{k}" for k in range(2000)]))
    assert hashes.dtype == np.uint32 and len(np.unique(hashes)) == 2000
    assert hashes.max() > 2**31


def test_a_token_beyond_the_vocabulary_is_refused(tiny_corpus):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:8]
    few = dataclasses.replace(tiny_corpus.vocabulary, genes=("g",), medians=np.ones(1))
    damaged = dataclasses.replace(tiny_corpus, vocabulary=few)
    source = Batches(damaged, rows, Plan(8, 8, seed=0), 1, (128,), MASKS, 0)
    with pytest.raises(ValueError, match="tokens that no gene has: a shard is damaged"):
        source[0]
