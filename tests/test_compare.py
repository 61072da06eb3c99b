"""Scores of known order in; ranks, their means and intervals out."""

import numpy as np
import pandas as pd
import pytest

from scaling.analyse import sections
from scaling.analyse.compare import differences, from_mlm, rank_table
from scaling.analyse.fits import fit_table


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


def losses(**curves) -> pd.DataFrame:
    """Scores of models whose loss is E + 3 size^-alpha, and of a baseline."""
    rng, rows = np.random.default_rng(0), []
    for model, (offset, alpha) in curves.items():
        for cells in (100, 300, 1_000, 3_000, 10_000, 30_000):
            for seed in range(3):
                value = (offset + 3 * cells**-alpha) * rng.normal(1, 0.002)
                rows.append({"model": model, "cells": cells, "subset_seed": seed, "value": value})
    kinds = {name: "baseline" if name == "pca" else "pretrained" for name in curves}
    table = pd.DataFrame(rows).assign(
        task="masked_genes", dataset="kang", score="loss", positions="mask", read_from="P",
        init_seed=0, mask_seed=0, tokens=1, exposures=9, converged=True, note="",
    )  # fmt: skip
    return table.assign(kind=table["model"].map(kinds))


def test_a_model_differs_from_mlm_in_what_was_changed():
    rows = losses(mlm=(2.0, 0.5), cab=(1.5, 0.5), steep=(2.0, 0.8), pca=(1.0, 0.5))
    found = {gap["other"]: gap for gap in from_mlm(rows, fit_table(rows, draws=100), draws=200)}
    assert set(found) == {"cab", "steep"}
    for name, offset, exponent in (("cab", -0.5, 0.0), ("steep", 0.0, 0.3)):
        gap = found[name]
        assert (gap["one"], gap["score"], gap["dataset"]) == ("mlm", "loss", "kang")
        for parameter, truth in (("E", offset), ("alpha", exponent)):
            low, high = gap["parameters"][parameter]["interval"]
            assert low < truth < high and (low < 0 < high) == (truth == 0), (name, parameter)
    page = sections.differences(list(found.values()))
    assert "leave zero out: 2 of 4" in page and page.count("<b>") == 2
    assert sections.differences([]) == "" == sections.differences(from_mlm(rows, []))


def test_flat_curves_differ_in_their_offset_and_what_is_open_is_said():
    """Without a trend no exponent is told; with one in noise it is open within its range."""
    rows = losses(mlm=(2.0, 30.0), cab=(1.5, 30.0), pca=(1.0, 0.5))  # 100^-30 is nothing
    [gap] = from_mlm(rows, fit_table(rows, draws=100), draws=200)
    assert gap["form"] == "constant" and set(gap["parameters"]) == {"E"}
    low, high = gap["parameters"]["E"]["interval"]
    assert low < -0.5 < high < 0
    noise = np.random.default_rng(1).normal(0, 0.2, len(rows))
    rows["value"] += noise
    curves = {name: (of["cells"], of["value"], None) for name, of in rows.groupby("model")}
    found = {name: {"forms": {"power": {"aicc": 0.0}}} for name in curves}
    pair = {name: curves[name] for name in ("mlm", "cab")}
    [gap] = differences(pair, found, "log", draws=200)
    assert not gap["parameters"]["alpha"]["identified"] and gap["parameters"]["E"]["identified"]
    page = sections.differences([gap | {"score": "loss", "read_from": "P", "dataset": "kang"}])
    assert page.count("<td>not identified</td>") == 1
