"""Batches: cells the plan names, as far padded as they need, cut over any hosts without loss."""

import dataclasses
import hashlib
import types

import jax
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus.encodings import Cells, pad
from scaling.corpus.vocabulary import Vocabulary
from scaling.pretrain import masking
from scaling.pretrain.batches import Batches, cell_hashes, iterate
from scaling.pretrain.plan import Plan

MASKS = masking.MaskingSettings(0.15, 0.8, 0.1, False)
READABLE = masking.MaskingSettings(0.15, 0.0, 0.0, False)  # the inputs are the tokens


def assert_equal(mine: masking.MaskedCells, theirs: masking.MaskedCells):
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
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


def test_a_host_reads_its_places_of_the_batch(source, tiny_corpus):
    rows, places = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20], np.array([0, 1, 4, 7])
    draw = Plan(20, 8, seed=0), 7, (128,), MASKS, 3
    part = Batches(tiny_corpus, rows, *draw, places)
    for step in range(7):
        assert_equal(part[step], jax.tree.map(lambda array: array[places], source[step]))
        ids = tiny_corpus.obs["cell_id"].to_numpy()[rows[Plan(20, 8, seed=0).at(step)[0]]]
        assert part.cells(step) == source.cells(step) == ids.tolist()


def test_an_iterator_starts_at_any_batch(source):
    rest = list(iterate(source, 3))
    for step, batch in enumerate(rest, 3):
        assert_equal(batch, source[step])
    assert len(rest) == 4 and list(iterate(source, 7)) == []


PADDED = (16, 32, 64)


def corpus_of(lengths) -> types.SimpleNamespace:
    """Stands in for a corpus: cell k has as many tokens as asked for, all of them k + 2."""
    obs = pd.DataFrame({"cell_id": [f"cell:{k}" for k in range(len(lengths))], "length": lengths})
    tokens = [np.full(n, k + 2, np.uint16) for k, n in enumerate(lengths)]
    genes = Vocabulary([f"gene {k}" for k in range(80)], np.ones(80))
    return types.SimpleNamespace(
        obs=obs, folder="none", vocabulary=genes, lengths=lambda rows: np.asarray(lengths)[rows],
        inputs=lambda rows, length, encoding: Cells(pad([tokens[r] for r in rows], length)),
    )


@settings(max_examples=25)
@given(st.data())
def test_another_number_of_hosts_goes_on_with_exactly_the_cells_left(data):
    lengths = np.array(data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=40)))
    before, after = data.draw(st.permutations([1, 2, 4]))[:2]
    batch, epochs = 4 * data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    steps = -(-epochs * len(lengths) // batch)
    taken, seed = data.draw(st.integers(0, steps)), data.draw(st.integers(0, 3))
    buckets = np.searchsorted(PADDED, lengths.clip(max=64))
    corpus = corpus_of(lengths)

    def on(hosts: int, first: int, count: int) -> list[tuple]:
        """Some batches: their cells on all hosts, and their length."""
        parts = []
        for places in np.arange(batch).reshape(hosts, -1):
            plan, rows = Plan(len(lengths), batch, seed, buckets), np.arange(len(lengths))
            source = Batches(corpus, rows, plan, steps, PADDED, READABLE, 0, places)
            iterator = iterate(source, first)
            parts.append([next(iterator) for _ in range(count)])
            iterator.close()
        shapes = [[batch.inputs_BxL.shape for batch in part] for part in parts]
        assert all(of_host == shapes[0] for of_host in shapes)
        joined = [
            np.concatenate([batch.inputs_BxL for batch in of_hosts])
            for of_hosts in zip(*parts, strict=True)
        ]
        return [(tokens[:, 0] - 2, tokens.shape[1]) for tokens in joined]

    read = on(before, 0, taken) + on(after, taken, steps - taken)
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


def test_programs_and_mam_reach_the_batches(tiny_corpus, tmp_path):
    rows = np.flatnonzero(tiny_corpus.obs["split"] == "pool")[:20]
    genes, gmt = tiny_corpus.vocabulary.genes, tmp_path / "sets.gmt"
    gmt.write_text("".join(f"s{k}\tabout\t" + "\t".join(genes[k::5]) + "\n" for k in range(5)))
    plan, lengths = Plan(len(rows), 4, 0), (128,)

    def batch(**changes):
        masks = dataclasses.replace(MASKS, **changes)
        return Batches(tiny_corpus, rows, plan, 2, lengths, masks, 0)[0]

    found = batch(strategy="programs", programs=str(gmt), rate=0.05)
    for labels in found.labels_BxM:
        assert len({(label - 2) % 5 for label in labels[labels >= 0]}) == 1
    later = batch(strategy="mam").later
    assert (later.free_BxL == (batch(strategy="mam").inputs_BxL >= 2)).all()
    assert len(set(later.draw_B)) == 4 and batch().later is None
