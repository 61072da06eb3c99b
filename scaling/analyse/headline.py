"""The scores table, fits and verdicts in; the study's findings in a few lines of text out."""

import pandas as pd

from scaling.analyse.axes import AXES, varying
from scaling.analyse.claims import (
    BIOLOGY,
    CAB,
    CLASSES,
    CONTRADICTED,
    CORRECTIONS,
    MIXING,
    NOT_TESTED,
    READ_FROM,
    SUPPORTED,
    UNDECIDED,
    UNTRAINED,
    at_largest,
    below_floor,
    differences_from_mlm,
    number,
    sign,
    trends,
    variants_of,
)
from scaling.analyse.trends import tidy


def headline(rows: pd.DataFrame, fits: list[dict], claims: list[dict]) -> str:
    """What a study found, in nine lines at most for a computational biologist."""
    table = tidy(rows)
    lines = [
        _scope(table, fits),
        _trend_line(table, "Masked genes", "accuracy", "masked_genes", "accuracy"),
        _floor_line(table),
        _trend_line(table, "Cell types", "macro-F1", *CLASSES),
        _trend_line(table, "Batch mixing", "average batch score", *MIXING),
        *[_cab_line(table, cab) for cab in variants_of(table)],
        _baseline_line(table),
        _verdict_line(claims),
    ]
    return "\n".join(line for line in lines if line)


def _scope(table, fits) -> str:
    runs = table[table["kind"] == "pretrained"]
    alike = ["model", "scheme", "cells", *(axis for axis in AXES if axis in runs)]
    each = runs.drop_duplicates([*alike, "exposures", "subset_seed", "init_seed"])
    sizes, unconverged = sorted(runs["cells"].unique()), int((each["converged"] == False).sum())  # noqa: E712
    if not sizes:
        return "Study: no pretrained model in the table."
    seeds = each.groupby(alike, dropna=False).size()
    span = f"{sizes[0]:,.0f}" + (f" to {sizes[-1]:,.0f}" if len(sizes) > 1 else "")
    each_seeds = f"{seeds.min()}" + (f" to {seeds.max()}" if seeds.min() < seeds.max() else "")
    line = (
        f"Study: {len(each)} pretrained models; sizes: {len(sizes)} ({span} cells, "
        f"at most {runs['tokens'].max():,.0f} gene tokens); "
        f"seeds per model and size: {each_seeds}"
    )
    if differing := varying(runs):
        line += f"; each {' and '.join(differing)} is a data set of its own below"
    if unconverged:
        line += f"; {unconverged} not converged"
    return line + ("." if any(f["form"] for f in fits) else "; too few sizes for curves.")


def _trend_line(table, title, quantity, task, score) -> str:
    words = []
    for model in READ_FROM:
        found = trends(table, task, score, model).values()
        if found:
            words.append(f"{model} {_tally([(f['slope'], f['interval']) for f in found])}")
    return f"{title}, {quantity} per tenfold cells: " + "; ".join(words) + "." if words else ""


def _cab_line(table, cab: str) -> str:
    words = []
    for score, read_from, name in (
        ("accuracy", "Q", "accuracy (both read from Q)"),
        ("repeat", "P", "repeated genes (both read from P)"),
    ):
        found = [f for _, f in differences_from_mlm(table, cab, "masked_genes", score, read_from)]
        if found:
            words.append(f"{name} {_tally([(f['mean'], f['mean_interval']) for f in found])}")
    name = f"CAB ({CAB[cab]})" if len(variants_of(table)) > 1 else "CAB"
    return f"{name} minus MLM, mean over sizes: " + "; ".join(words) + "." if words else ""


def _tally(found) -> str:
    """Values with intervals, one per data set, as `up in 2 of 3 data sets (+0.01 to +0.03)`."""
    values, signs = sorted(value for value, _ in found), [sign(interval) for _, interval in found]
    if len(found) == 1:
        word = {1: "up", -1: "down", 0: "unclear"}[signs[0]]
        return f"{word} {number(*found[0])}"
    words = ((1, "up"), (-1, "down"), (0, "unclear"))
    told = ", ".join(f"{word} in {signs.count(s)}" for s, word in words if s in signs)
    return f"{told} of {len(found)} data sets ({values[0]:+.3f} to {values[-1]:+.3f})"


def _floor_line(table) -> str:
    names = dict.fromkeys([*READ_FROM, "untrained"]) | {
        "most_frequent": "most frequent gene", "copy_input": "copied input",
    }  # fmt: skip
    words = []
    for model, name in names.items():
        read_from = READ_FROM.get(model, "P")
        value = at_largest(table, "masked_genes", "accuracy", model, read_from)
        if value is not None:
            reading = f" (from {read_from})" if model in READ_FROM else ""
            words.append(f"{name or model}{reading} {value:.3f}")
    start = "Masked accuracy at the largest size, mean over data sets: "
    caution = f" {UNTRAINED}: train longer, or a larger model." if below_floor(table) else ""
    return start + ", ".join(words) + "." + caution if words else ""


def _baseline_line(table) -> str:
    words = []
    for (task, score), name in ((CLASSES, "macro-F1"), (BIOLOGY, "AvgBIO"), (MIXING, "batch")):
        models = (*READ_FROM, "untrained", "hvg", "pca", "parameter_free", *CORRECTIONS)
        values = {m: at_largest(table, task, score, m) for m in models}
        ranked = sorted((m for m in models if values[m] is not None), key=lambda m: -values[m])
        if ranked:
            words.append(f"{name} " + " > ".join(f"{m} {values[m]:.2f}" for m in ranked))
    start = "Embeddings at the largest size, best first: "
    return start + "; ".join(words) + "." if words else ""


def _verdict_line(claims) -> str:
    words = []
    for verdict in (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED):
        numbers = [
            f"{c['number']}" + (f" ({c['of']})" if c["of"] else "")
            for c in claims if c["verdict"] == verdict
        ]  # fmt: skip
        if numbers:
            words.append(f"{verdict} {', '.join(numbers)}")
    return "Published claims, numbered as in the report: " + "; ".join(words) + "."
