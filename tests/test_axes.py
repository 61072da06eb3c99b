"""Scores of runs that differ in an axis have data sets of their own, with the rows they share."""

import pandas as pd
import pytest

from scaling.analyse import axes
from scaling.analyse.headline import headline

ROWS = pd.DataFrame(
    [
        ("cab", "pretrained", "recalibrated", 1.0, "3 epochs"),
        ("cab", "pretrained", "recalibrated", 5.0, "3 epochs"),
        ("cab", "pretrained", "plain", 200.0, "3 epochs"),
        ("mlm", "pretrained", None, 0.0, "3 epochs"),
        ("pca", "baseline", None, None, None),
    ],
    columns=["model", "kind", "variant", "similarity_weight", "duration"],
).assign(dataset="kang", masking_rate=0.15)


def test_each_value_has_a_data_set_in_which_shared_rows_stand_too():
    found = axes.apart(ROWS)
    weights = found.groupby("dataset")["similarity_weight"].agg(lambda w: sorted(w.dropna()))
    assert weights.to_dict() == {
        "kang (weight 1)": [0.0, 1.0, 200.0],
        "kang (weight 5)": [0.0, 5.0, 200.0],
    }
    models = found.groupby("dataset")["model"].agg(tuple)
    assert set(models) == {("cab", "cab_plain", "mlm", "pca")}


def test_variants_are_models_whose_own_weights_tell_nothing_apart():
    found = axes.apart(ROWS.drop(index=1))
    assert found["model"].tolist() == ["cab", "cab_plain", "mlm", "pca"]
    assert set(found["dataset"]) == {"kang"}
    alone = axes.apart(ROWS.iloc[[2, 3, 4]])
    assert alone["model"].tolist() == ["cab_plain", "mlm", "pca"]


@pytest.mark.parametrize("rows", [ROWS.iloc[[0, 3, 4]], ROWS[["model", "kind", "dataset"]]])
def test_a_table_in_which_no_axis_varies_stays_as_it_is(rows):
    pd.testing.assert_frame_equal(axes.apart(rows), rows)


def test_durations_are_told_as_they_were_asked_for():
    rows = pd.concat([ROWS.iloc[[0, 4]], ROWS.iloc[[0]].assign(duration="40 steps")])
    assert set(axes.apart(rows)["dataset"]) == {"kang (3 epochs)", "kang (40 steps)"}


def test_the_headline_counts_the_runs_of_every_value():
    runs = [
        {"encoding": encoding, "init_seed": seed, "subset_seed": seed, "dataset": f"x ({encoding})"}
        for encoding in ("bins", "ranks") for seed in (0, 1, 2)
    ]  # fmt: skip
    fixed = {"model": "mlm", "kind": "pretrained", "task": "cell_types", "score": "accuracy"}
    fixed |= {"cells": 100, "exposures": 100, "tokens": 900, "value": 0.5, "converged": True}
    fixed |= {"mask_seed": 0, "note": "", "positions": "", "read_from": ""}
    said = headline(pd.DataFrame(runs).assign(**fixed, masking_rate=None), [], [])
    assert said.startswith("Study: 6 pretrained models; sizes: 1 (100 cells")
    assert "seeds per model and size: 3;" in said
