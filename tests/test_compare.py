"""Scores of known order in; ranks, their means and intervals out."""

import numpy as np
import pandas as pd
import pytest

from scaling.analyse.compare import rank_table


def scores(levels: dict, sd: float, seeds: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (model, task, value + rng.normal(0, sd))
        for model, values in levels.items() for task, value in enumerate(values)
        for _ in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["model", "task", "value"])


def test_clear_ranks_are_certain_and_ties_are_not():
    levels = {"best": (3.0, 3.0, 1.0), "second": (2.0, 2.0, 3.0), "third": (1.0, 1.0, 2.0)}
    clear = rank_table(scores(levels, 0.01))
    assert clear.loc["best", [0, 1, 2]].tolist() == [1, 1, 3]
    means = {"best": 5 / 3, "second": 5 / 3, "third": 8 / 3}
    assert clear["mean"].to_dict() == pytest.approx(means)
    assert (clear["low"] == clear["mean"]).all() and (clear["high"] == clear["mean"]).all()
    equal = rank_table(scores({name: (1.0, 1.0, 1.0) for name in levels}, 0.1))
    assert (equal["high"] - equal["low"] > 0.5).all()


def test_tasks_are_drawn_apart():
    """A mean over three tasks wavers by sqrt(3) less than one task's rank."""
    one = scores({"a": (1.0,), "b": (1.0,), "c": (1.0,)}, 0.1)
    three = pd.concat([one.assign(task=task) for task in range(3)])
    widths = [(t["high"] - t["low"]).mean() for t in (rank_table(one), rank_table(three))]
    assert widths[1] < 0.9 * widths[0]


def test_single_runs_have_ranks_without_intervals_and_a_gap_is_refused():
    table = scores({"a": (1.0, 2.0), "b": (2.0, 1.0)}, 0.0, seeds=1)
    assert rank_table(table)["low"].isna().all()
    with pytest.raises(ValueError, match=r"task 1 has no score of \['b'\]"):
        rank_table(table.iloc[:-1])
