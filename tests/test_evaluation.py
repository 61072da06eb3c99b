"""What an evaluation prints: its main scores, and what has none."""

import pandas as pd

from scaling.evaluation import headline, not_scored


def table() -> pd.DataFrame:
    rows = [
        ("model", "masked_genes", "accuracy", "mask", "P", "", 0.1, 0.05, 0.15, ""),
        ("model", "masked_genes", "accuracy", "mask", "Q", "", 0.2, None, None, ""),
        ("model", "masked_genes", "accuracy", "wrong", "Q", "", 0.9, None, None, ""),
        ("model", "noise", "accuracy", None, None, "20 % of cells noised", 0.3, 0.2, 0.4, ""),
        ("model", "noise", "macro_f1", None, None, "20 % of cells noised", 0.8, 0.2, 0.4, ""),
        ("model", "noise", "accuracy", None, None, "20 % of cells noised, B", 0.7, 0.2, 0.4, ""),
        ("harmony", "noise", "accuracy", None, None, "", None, None, None, "it is fitted"),
        ("harmony", "noise", "macro_f1", None, None, "", None, None, None, "it is fitted"),
        ("model", "cell_types", "knn_accuracy", None, None, "", 0.4, 0.3, 0.5, ""),
        ("model", "cell_types", "rare_recall", None, None, "", None, None, None, "no rare type"),
    ]
    named = "model", "task", "score", "positions", "read_from", "of", "value", "low", "high"
    return pd.DataFrame(rows, columns=[*named, "note"]).assign(dataset="blood")


def test_the_headline_says_what_was_read_and_what_was_noised():
    masked, noised, types = headline(table()).split("\n\n")
    assert masked.split() == [
        *"masked_genes, blood accuracy from P accuracy from Q".split(),
        *"model 0.100 [0.050, 0.150] 0.200".split(),
    ]
    assert noised.split() == [
        *"noise, blood 20 % of cells noised model 0.300 [0.200, 0.400]".split()
    ]
    assert types.startswith("cell_types, blood\n") and "rare_recall" not in types


def test_what_has_no_score_is_told_once_with_its_reason():
    assert not_scored(table()) == "no score: blood, noise, of harmony: it is fitted"
    twice = table().assign(task="embedded"), table()[6:8].assign(model="scvi")
    both = pd.concat([table(), *twice])
    assert not_scored(both).splitlines() == [
        "no score: blood, noise, of harmony, scvi: it is fitted",
        "no score: blood, embedded, of harmony: it is fitted",
    ]
    assert not_scored(table()[:4]) == ""
