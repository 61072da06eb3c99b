"""Which lines a study's pictures under noise show, and of which scores they are made."""

import itertools

import pandas as pd
import pytest

from scaling.evaluate import noise, noise_curves


def rows_of(**axes) -> pd.DataFrame:
    """Scores of cab at two sizes and seeds, and of two baselines, for each value of the axes."""
    found = []
    shares = ("0 % of cells noised", "40 % of cells noised", "40 % of cells noised, B",
              "100 % of counts kept", "20 % of counts kept")  # fmt: skip
    common = {"task": "noise", "dataset": "kang"}
    for of, score in itertools.product(shares, ("accuracy", "macro_f1", "accuracy_drop")):
        for values in itertools.product(*axes.values()):
            for cells, seed in itertools.product((100, 900), (0, 1)):
                of_run = dict(zip(axes, values, strict=True))
                found.append({**common, "of": of, "score": score, "model": "cab", "cells": cells,
                              "kind": "pretrained", **of_run, "value": cells / 1_000 - seed / 10,
                              "low": cells / 1_000 - 0.3 - seed / 50,
                              "high": 1 - seed / 100})  # fmt: skip
        for model in ("pca", "hvg"):
            found.append({**common, "of": of, "score": score, "model": model, "cells": 900,
                          "kind": "baseline", "value": 0.5, "low": 0.4, "high": 0.6})  # fmt: skip
    return pd.DataFrame(found).sample(frac=1, random_state=0)


@pytest.fixture
def drawn(monkeypatch):
    found = {}
    monkeypatch.setattr(
        noise, "draw", lambda lines, path, **how: found.__setitem__(path.name, lines)
    )
    return found


def test_a_line_is_the_largest_models_mean_over_seeds(drawn, tmp_path):
    told = noise_curves.draw_all(rows_of(), tmp_path)
    assert set(drawn) == {"noise_noised_kang.png", "noise_thinned_kang.png"}
    assert [picture["title"] for picture in told] == [
        "Under noise: kang, cells noised", "Under noise: kang, counts kept"
    ]  # fmt: skip
    lines = drawn["noise_noised_kang.png"]
    assert list(lines)[0] == "cab" and set(lines) == {"cab", "pca", "hvg"}
    assert {(s.name, s.of) for s in lines["cab"]} == {
        (name, of) for name in ("accuracy", "macro_f1")
        for of in ("0 % of cells noised", "40 % of cells noised")
    }  # fmt: skip
    for score in lines["cab"]:
        assert (score.value, score.low, score.high) == pytest.approx((0.85, 0.58, 1.0))


def test_the_first_axis_that_varies_makes_lines_and_others_pictures(drawn, tmp_path):
    axes = {"masking": ["uniform", "mam"], "encoding": ["ranks", "bins"], "encoder": ["one"]}
    noise_curves.draw_all(rows_of(**axes), tmp_path)
    assert set(drawn) == {
        f"noise_{kind}_kang_{m}_masks.png" for kind in ("noised", "thinned")
        for m in ("uniform", "mam")
    }  # fmt: skip
    for lines in drawn.values():
        assert set(lines) == {"cab (input ranks)", "cab (input bins)", "pca", "hvg"}


def test_variants_and_schemes_are_not_averaged(drawn, tmp_path):
    noise_curves.draw_all(rows_of(variant=["recalibrated", "plain"]), tmp_path)
    assert set(drawn["noise_noised_kang.png"]) == {"cab", "cab_plain", "pca", "hvg"}
    noise_curves.draw_all(rows_of(scheme=["random", "sketch"]), tmp_path)
    lines = drawn["noise_noised_kang.png"]
    assert set(lines) == {"cab (random subsets)", "cab (sketch subsets)", "pca", "hvg"}


def test_a_ninth_line_is_left_out_and_it_is_a_baseline(drawn, tmp_path):
    noise_curves.draw_all(rows_of(encoding=[f"e{k}" for k in range(7)]), tmp_path)
    lines = list(drawn["noise_noised_kang.png"])
    assert len(lines) == 8 and sum(name.startswith("cab") for name in lines) == 7


def test_a_study_without_noise_has_no_picture(drawn, tmp_path):
    assert noise_curves.draw_all(rows_of().assign(task="cell_types"), tmp_path / "no") == []
    assert not drawn and not (tmp_path / "no").exists()


def test_pictures_are_drawn(tmp_path):
    told = noise_curves.draw_all(rows_of(encoding=["ranks", "bins"]), tmp_path)
    assert all(picture["path"].stat().st_size > 10_000 for picture in told) and len(told) == 2
