"""Scores of runs that differ in an axis have data sets of their own, with the rows they share."""

import re

import pandas as pd
import pytest

from scaling.analyse import axes, sections
from scaling.analyse.headline import headline
from scaling.analyse.trends import tidy

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
    assert "seeds per model and size: 3; each encoding is a data set of its own below" in said


def test_the_settings_stand_side_by_side_with_all_of_their_seeds():
    runs = [
        {"encoding": encoding, "masking": masking, "init_seed": seed, "value": value + 0.1 * seed}
        for encoding, masking, value in (("bins", "band", 0.1), ("bins", "mam", 0.2),
                                         ("ranks", "band", 0.4), ("ranks", "mam", 0.6))
        for seed in (0, 1)
    ]  # fmt: skip
    table = pd.DataFrame(runs)
    table = table.assign(low=table["value"] - 0.05, high=table["value"] + 0.05, dataset="kang")
    fixed = {"model": "mlm", "kind": "pretrained", "task": "cell_types", "converged": True}
    fixed |= {"score": "logistic_macro_f1", "cells": 100, "exposures": 100, "tokens": 900}
    fixed |= {"subset_seed": 0, "mask_seed": 0, "note": "", "positions": "", "read_from": ""}
    large = table.assign(**fixed)
    small = large.assign(cells=10, value=0.99)
    untrained = large.assign(kind="baseline", model="untrained", cells=0, masking=None, value=0.98)
    page = sections.settings(tidy(pd.concat([large, small, untrained])))
    cells = [re.findall("<td>(.*?)</td>", row) for row in page.split("<tr>")[2:]]
    assert cells == [
        ["bins", "band", "mlm", "0.150 [0.050, 0.250]"],
        ["bins", "mam", "mlm", "0.250 [0.150, 0.350]"],
        ["ranks", "band", "mlm", "0.450 [0.350, 0.550]"],
        ["ranks", "mam", "mlm", "0.650 [0.550, 0.750]"],
    ]
    alike = large[large["encoding"].eq("bins") & large["masking"].eq("band")]
    assert sections.settings(tidy(alike)) == ""


def test_weights_vary_where_those_of_one_model_do():
    assert axes.varying(ROWS) == ["similarity_weight"]
    assert axes.varying(axes.variants_apart(ROWS.drop(index=1))) == []


def test_names_of_files_need_no_quotes():
    assert axes.file_name("noise kang (input bins)/2.5x") == "noise_kang_input_bins_2.5x"
