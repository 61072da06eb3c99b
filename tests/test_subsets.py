"""Held-out cells and nested subsets: properties that hold for any corpus."""

import fractions
import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.corpus import subsets


def _obs(cells: int, **columns) -> pd.DataFrame:
    obs = pd.DataFrame({"cell_id": [f"file:{k}" for k in range(cells)]})
    return obs.assign(**{"donor": "", "batch": "", "split": "pool", **columns})


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 60))
def test_the_smaller_stands_inside_the_larger(seed, n, m):
    obs = _obs(60)
    small, large = (subsets.nested(obs, cells, seed) for cells in sorted((n, m)))
    assert large[: len(small)].tolist() == small.tolist()
    assert len(set(large.tolist())) == len(large) == max(n, m)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_seeds_differ(a, b):
    one, other = (set(subsets.nested(_obs(200), 50, seed).tolist()) for seed in (a, b))
    assert (one == other) == (a == b)


@given(st.lists(st.sampled_from(["pool", "held_out", "duplicate"]), min_size=1), st.integers(0, 9))
def test_only_the_pool_is_ever_touched(split, seed):
    obs = _obs(len(split), split=split)
    pool = split.count("pool")
    if pool:
        rows = subsets.nested(obs, pool, seed)
        assert sorted(rows.tolist()) == [k for k, s in enumerate(split) if s == "pool"]
    for cells in (pool + 1, 0, -1):
        with pytest.raises(ValueError, match=f"{cells} cells from a pool of {pool}.*study.sizes"):
            subsets.nested(obs, cells, seed)


@given(st.permutations(range(40)), st.integers(1, 39))
def test_growth_and_order_of_the_corpus_change_nothing(order, known):
    grown = _obs(40).iloc[order].reset_index(drop=True)
    before = grown[: known]
    old = before["cell_id"].to_numpy()[subsets.nested(before, known, 3)].tolist()
    new = grown["cell_id"].to_numpy()[subsets.nested(grown, 40, 3)].tolist()
    assert [cell for cell in new if cell in set(old)] == old


def test_the_same_on_every_machine():
    # as b2sum would order them: blake2b, 8 bytes, the seed as key
    ids = np.array(["a:1", "a:2", "b:1", "b:2"])
    assert [subsets.order(ids, seed).tolist() for seed in (0, 1)] == [[2, 3, 1, 0], [2, 1, 3, 0]]

LABELS = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=60)


def _of_scheme(obs: pd.DataFrame, cells: int | None, seed: int, scheme: str, **more) -> np.ndarray:
    bins = obs["bin"].to_numpy(np.uint64) if "bin" in obs else None
    return subsets.nested(obs, cells, seed, scheme, bins, **more)


def _two_sets(cells: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return _obs(
        cells,
        cell_type=rng.choice(["a", "b", "c"], cells, p=[0.8, 0.15, 0.05]),
        dataset=np.where(np.arange(cells) % 3, "base", "other"),
        bin=rng.integers(0, 2**64, cells, np.uint64),
    )


@pytest.mark.parametrize("scheme", subsets.SCHEMES)
@pytest.mark.parametrize("spike", [{}, {"spike": "other", "spike_share": 0.1}])
@given(seed=st.integers(0, 9), n=st.integers(1, 60))
def test_every_scheme_nests_and_draws_from_the_pool_alone(scheme, spike, seed, n):
    split = np.where(np.arange(100) % 5, "pool", "held_out")
    obs = _two_sets(100).assign(split=split)
    whole = _of_scheme(obs, None, seed, scheme, **spike)
    assert _of_scheme(obs, min(n, len(whole)), seed, scheme, **spike).tolist() == (
        whole[:n].tolist()
    )
    assert len(set(whole.tolist())) == len(whole) and (split[whole] == "pool").all()
    base = ((obs["dataset"] == "base") & (split == "pool")).sum()
    assert len(whole) - len(whole) // 10 == base if spike else len(whole) == 80
    other = _of_scheme(obs, None, seed + 1, scheme, **spike)
    assert whole.tolist() != other.tolist()
    shuffled = obs.sample(frac=1, random_state=seed).reset_index(drop=True)
    again = _of_scheme(shuffled, None, seed, scheme, **spike)
    assert obs["cell_id"].to_numpy()[whole].tolist() == (
        shuffled["cell_id"].to_numpy()[again].tolist()
    )


@given(st.floats(1e-300, 1, exclude_max=True))
def test_logarithm_of_exact_operations(u):
    found = subsets._log(np.array([u]))[0]
    # Eight roundings of 2^-53 each, at most, stand between the two.
    assert found == pytest.approx(np.log(u), rel=8 * 2**-53, abs=1e-300)


def test_reweighted_keys_are_those_of_the_paper():
    obs = _two_sets(50)
    ids, types = obs["cell_id"].to_numpy(), obs["cell_type"]
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=b"3").digest() for i in ids]
    u = 1 - np.array([int.from_bytes(d, "big") for d in digests]) / 2.0**64
    frequency = types.map(types.value_counts(normalize=True)).to_numpy(float)
    wanted = np.argsort(-(u**frequency), kind="stable")  # u^(1/w), the largest first
    assert _of_scheme(obs, None, 3, "reweighted").tolist() == wanted.tolist()


def test_reweighted_draws_rare_types_as_often_as_common_ones():
    types = np.repeat(["a", "b", "c"], [2000, 200, 100])
    obs = _obs(2300, cell_type=types)
    counts = sum(
        np.unique(types[_of_scheme(obs, 60, seed, "reweighted")], return_counts=True)[1]
        for seed in range(20)
    )
    assert counts.sum() == 1200 and (np.abs(counts - 400) < 80).all()


@given(LABELS, st.integers(0, 9), st.integers(0, 60))
def test_grown_corpus_keeps_the_reweighted_order_within_each_type(labels, seed, known):
    labels = [*labels, "a"]
    grown = _obs(len(labels), cell_type=labels)
    before = grown[: known + 1]
    if not before["cell_type"].ne("").any():
        return
    old, new = (_of_scheme(obs, None, seed, "reweighted") for obs in (before, grown))
    for name in set(before["cell_type"]):
        of_type = [row for row in new if labels[row] == name and row < len(before)]
        assert of_type == [row for row in old if labels[row] == name]


@given(LABELS, st.integers(0, 9))
def test_types_that_grow_alike_keep_the_reweighted_order_of_all_cells(labels, seed):
    labels = [*labels, "a"]
    before, grown = _obs(len(labels), cell_type=labels), _obs(2 * len(labels), cell_type=labels * 2)
    old, new = (_of_scheme(obs, None, seed, "reweighted") for obs in (before, grown))
    assert [row for row in new if row < len(labels)] == old.tolist()


def test_reweighting_without_labels_is_refused():
    with pytest.raises(ValueError, match="no cell of the training pool has one.*data.cell_type"):
        _of_scheme(_obs(9, cell_type=np.repeat(["a", ""], [1, 8]), split=["held_out"] + 8 * [
            "pool"]), 3, 0, "reweighted")  # fmt: skip


def _bins(draw_from: int):
    return st.lists(st.integers(0, draw_from), min_size=1, max_size=60)


@given(_bins(2**64 - 1) | _bins(40), st.integers(0, 9))
def test_sketch_holds_one_cell_of_each_bin_side_after_side(codes, seed):
    obs = _obs(len(codes)).assign(bin=np.array(codes, np.uint64))
    found = _of_scheme(obs, None, seed, "sketch")
    assert sorted(found.tolist()) == list(range(len(codes)))
    place = {row: k for k, row in enumerate(subsets.order(obs["cell_id"].to_numpy(), seed))}
    for side in range(0, 17):
        of_bin = {}
        for row in range(len(codes)):
            of_bin.setdefault(codes[row] >> 4 * side, []).append(row)
        first = {min(rows, key=place.get) for rows in of_bin.values()}
        assert set(found[: len(of_bin)].tolist()) == first


@given(_bins(2**64 - 1) | _bins(2**12), st.integers(0, 9), st.integers(0, 60))
def test_in_a_grown_corpus_cells_keep_their_order_in_a_bin_and_come_no_earlier(codes, seed, known):
    grown = _obs(len(codes)).assign(bin=np.array(codes, np.uint64))
    before = grown[: known + 1]
    old, new = (_of_scheme(obs, None, seed, "sketch").tolist() for obs in (before, grown))
    for side in range(0, 17):
        bins = [{c >> 4 * side for c in codes[: len(obs)]} for obs in (before, grown)]
        firsts = set(old[: len(bins[0])]), set(new[: len(bins[1])])
        assert {row for row in firsts[1] if row < len(before)} <= firsts[0]
    for code in set(codes):
        kept = [row for row in new if row < len(before) and codes[row] == code]
        assert kept == [row for row in old if codes[row] == code]


@given(st.sampled_from([0.01, 0.1, 0.29, 0.5, 1 / 3, 0.9]), st.integers(0, 9))
def test_spiked_subsets_hold_the_share_at_every_size(share, seed):
    obs = _two_sets(300)
    found = _of_scheme(obs, None, seed, "random", spike="other", spike_share=share)
    exact = fractions.Fraction(str(share)).limit_denominator(1000)
    spiked = np.cumsum(obs["dataset"].to_numpy()[found] == "other")
    assert spiked.tolist() == [n * exact.numerator // exact.denominator
                               for n in range(1, len(found) + 1)]  # fmt: skip
    assert spiked[-1] == 100 or len(found) - spiked[-1] == 200  # one source is used up
    for name in ("base", "other"):
        rows = np.flatnonzero(obs["dataset"] == name)
        alone = rows[subsets.order(obs["cell_id"].to_numpy()[rows], seed)]
        mine = found[obs["dataset"].to_numpy()[found] == name]
        assert mine.tolist() == alone[: len(mine)].tolist()


def test_spikes_that_the_pool_cannot_give_are_refused():
    obs = _two_sets(300)
    with pytest.raises(ValueError, match="'third'; the training pool has .'base', 'other'."):
        _of_scheme(obs, 9, 0, "random", spike="third", spike_share=0.5)
    with pytest.raises(ValueError, match=r"202 cells from a pool of 300 \(201 at 0.5 from other"):
        _of_scheme(obs, 202, 0, "random", spike="other", spike_share=0.5)


@given(st.floats(0.01, 0.99), st.integers(0, 50), st.sampled_from(["donor", "batch"]))
def test_whole_groups_are_held_out_until_the_share_is_reached(share, seed, column):
    groups = np.repeat([f"d{k}" for k in range(7)], [1, 9, 4, 2, 20, 6, 8])
    obs = _obs(50, **{column: groups})
    held_out, split_by = subsets.hold_out(obs, share, seed)
    assert split_by == column
    chosen = set(groups[held_out])
    assert chosen and not chosen & set(groups[~held_out]) and not held_out.all()
    names, sizes = np.unique(groups, return_counts=True)
    sizes = sizes[subsets.order(names, seed)]
    reached = held_out.sum() >= share * 50 or len(chosen) == 6
    assert reached and (held_out.sum() - sizes[len(chosen) - 1] < share * 50)


def test_donors_come_before_batches_and_half_known_ones_are_no_split():
    names = np.repeat(["x", "y"], 5)
    assert subsets.hold_out(_obs(10, donor=names, batch=names[::-1]), 0.2, 0)[1] == "donor"
    unknown = np.array(["", *names[1:]])
    assert subsets.hold_out(_obs(10, donor=unknown, batch=names), 0.2, 0)[1] == "batch"
    assert subsets.hold_out(_obs(10, donor=unknown, batch="one"), 0.2, 0)[1] == "cell"


@given(st.integers(0, 50))
def test_without_groups_cells_are_held_out_one_by_one(seed):
    obs = _obs(50)
    held_out, split_by = subsets.hold_out(obs, 0.3, seed)
    assert split_by == "cell" and held_out.sum() == 15
    more, _ = subsets.hold_out(obs, 0.5, seed)
    assert not (held_out & ~more).any()
