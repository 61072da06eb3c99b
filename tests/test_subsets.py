"""Held-out cells and nested subsets: properties that hold for any corpus."""

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
