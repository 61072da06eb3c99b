"""The scores table in; a verdict on each published claim and the study's headline out.

The claims are those of the GF-CAB preprint (10.1101/2025.11.04.686458), in our words. A verdict
is given only where an interval excludes zero in every data set; the scores that decide were named
before any run: masked accuracy, logistic-probe macro-F1, AvgBIO and average batch score, and of
masked genes those at `<mask>` positions alone, since other selected ones still show a gene.
"""

import pandas as pd

from scaling.analyse.trends import difference, tidy, trend

SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED = (
    "supported", "contradicted", "undecided", "not tested",
)  # fmt: skip
CLASSES = ("cell_types", "logistic_macro_f1")
BIOLOGY = ("batch_mixing", "avg_bio")
MIXING = ("batch_mixing", "average_batch_score")
READ_FROM = {"mlm": "P", "cab": "Q"}  # each model read from what its own loss was taken on
CLAIMS = {
    1: "More pretraining cells raise masked-gene accuracy.",
    2: "More pretraining cells do not reliably raise downstream scores.",
    3: "CAB pretrained on fewer cells has the best mean rank over seven tasks.",
    4: "CAB makes the predicted genes repeat less and differ more.",
    5: "Rank-based models lose to dedicated batch-correction methods.",
    6: "CAB raises masked-gene accuracy at every scale (both objectives read from Q).",
    7: "CAB narrows the gap between small and large pretraining sets in cell-type scores.",
    8: "CAB makes batch robustness depend less on scale.",
}


UNTRAINED = "No trained model beats the most frequent gene, so nothing is judged by these runs"


def judge_claims(rows: pd.DataFrame) -> list[dict]:
    """One dict per claim: number, claim, verdict, evidence (words with numbers and intervals).

    Args: rows: the scores table, one row per score.
    """
    table = tidy(rows)
    judged = {
        1: _more_cells_raise_accuracy(table),
        2: _downstream_not_raised(table),
        3: (NOT_TESTED, "This study does not test it: the seven tasks of the preprint and the "
            "other models ranked there are not in the table."),
        4: _less_repetition(table),
        5: (NOT_TESTED, "This study does not test it: the table holds no dedicated "
            "batch-correction method (such as Harmony or scVI)."),
        6: _raises_accuracy_everywhere(table),
        7: _depends_less(table, CLASSES),
        8: _depends_less(table, MIXING),
    }  # fmt: skip
    if _below_floor(table):
        for number, (verdict, evidence) in judged.items():
            if verdict != NOT_TESTED:
                judged[number] = UNDECIDED, f"{UNTRAINED}. {evidence}"
    return [
        {"number": number, "claim": CLAIMS[number], "verdict": verdict, "evidence": evidence}
        for number, (verdict, evidence) in judged.items()
    ]


def select(
    table: pd.DataFrame, task: str, score: str, model: str | None = None, read_from: str = ""
) -> pd.DataFrame:
    """Rows of one score of a tidied table, `<mask>` positions where positions apply."""
    rows = table[(table["task"] == task) & (table["score"] == score) & table["value"].notna()]
    if task == "masked_genes":
        rows = rows[rows["positions"] == "mask"]
    if model is not None:
        rows = rows[rows["model"] == model]
    return rows[rows["read_from"].isin([read_from, ""])] if read_from else rows


def sign(interval) -> int:
    """+1 or -1 where an interval lies wholly above or below zero, else 0 (also without one)."""
    return 0 if interval is None else int(interval[0] > 0) - int(interval[1] < 0)


def number(value: float | None, interval=None, signed: bool = True) -> str:
    """A value in words with its interval: `+0.012 [0.004, 0.020]`."""
    if value is None:
        return "no value"
    words = f"{value:+.3f}" if signed else f"{value:.3f}"
    return words + (" [no interval]" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


def trends(
    table: pd.DataFrame, task: str, score: str, model: str, level: float = 0.95
) -> dict[str, dict]:
    """Trend over log10 cells per data set, the model read from what its loss was taken on."""
    read_from = READ_FROM.get(model, "P") if task == "masked_genes" else ""
    rows = select(table, task, score, model, read_from)
    rows = rows[rows["cells"] > 0]
    found = {
        name: trend(part["cells"], part["value"], level) for name, part in rows.groupby("dataset")
    }
    return {name: result for name, result in found.items() if len(result["sizes"]) >= 2}


def _more_cells_raise_accuracy(table):
    parts, signs = [], []
    for model, read_from in READ_FROM.items():
        for dataset, found in trends(table, "masked_genes", "accuracy", model).items():
            signs.append(sign(found["interval"]))
            parts.append(
                f"{dataset}, {model} read from {read_from}: {_slope(found)}, "
                f"from {found['means'][0]:.3f} at {found['sizes'][0]:,.0f} cells "
                f"to {found['means'][-1]:.3f} at {found['sizes'][-1]:,.0f}"
            )
    return _unanimous(signs, 1), _evidence(parts, "Change of accuracy per tenfold cells")


def _downstream_not_raised(table):
    """One reliable fall supports the claim, so that test is held to 5 % over all of them."""
    scores = (CLASSES, BIOLOGY, MIXING)
    keys = [(s, m) for s in scores for m in READ_FROM]
    found = {
        (*score, model, name): result
        for score, model in keys for name, result in trends(table, *score, model).items()
    }  # fmt: skip
    if not found:
        return UNDECIDED, _evidence([], "")
    level = 1 - 0.05 / len(found)
    strict = [
        sign(result["interval"])
        for score, model in keys for result in trends(table, *score, model, level).values()
    ]  # fmt: skip
    signs = [sign(result["interval"]) for result in found.values()]
    verdict = CONTRADICTED if min(signs) > 0 else SUPPORTED if min(strict) < 0 else UNDECIDED
    parts = [f"{d}, {s}, {m}: {_slope(result)}" for (_, s, m, d), result in found.items()]
    count = [sum(s == value for s in signs) for value in (1, -1, 0)]
    start = "Of {} trends {} rise, {} fall and {} are not told from flat; per tenfold cells"
    return verdict, _evidence(parts, start.format(len(signs), *count))


def _less_repetition(table):
    """Decided by P, where training alone differs; a contrary interval from Q withholds it."""
    signs, parts = {"P": [], "Q": []}, []
    for read_from in signs:
        for score, wanted in (("repeat", -1), ("uniqueness", 1)):
            for dataset, found in _differences(table, "masked_genes", score, read_from):
                signs[read_from].append(wanted * sign(found["mean_interval"]))
                gap = number(found["mean"], found["mean_interval"])
                parts.append(f"{dataset}, {score} read from {read_from}: {gap}")
    verdict = _unanimous(signs["P"], 1)
    against = {SUPPORTED: -1, CONTRADICTED: 1}.get(verdict)
    verdict = UNDECIDED if against in signs["Q"] else verdict
    return verdict, _evidence(parts, "CAB minus MLM, mean over sizes")


def _raises_accuracy_everywhere(table):
    """Every size must show it; one size against is enough to contradict (5 % over all sizes)."""
    rises, falls, parts = [], [], []
    for dataset, found in _differences(table, "masked_genes", "accuracy", "Q"):
        each = zip(found["sizes"], found["means"], found["per_size"], strict=True)
        gaps = [f"{number(gap, ends)} at {size:,.0f} cells" for size, gap, ends in each]
        parts.append(f"{dataset}: " + ", ".join(gaps))
        rises += [sign(ends) > 0 for ends in found["per_size"]]
    level = 1 - 0.05 / max(len(rises), 1)
    for _, found in _differences(table, "masked_genes", "accuracy", "Q", level):
        falls += [sign(ends) < 0 for ends in found["per_size"]]
    verdict = SUPPORTED if rises and all(rises) else CONTRADICTED if any(falls) else UNDECIDED
    return verdict, _evidence(parts, "CAB minus MLM in accuracy, both read from Q")


def _depends_less(table, score):
    """The two slopes must differ, and the steeper one must itself exclude zero."""
    signs, parts = [], []
    slopes = {model: trends(table, *score, model) for model in READ_FROM}
    for dataset, found in _differences(table, *score):
        mlm, cab = (slopes[model].get(dataset) for model in ("mlm", "cab"))
        if mlm is None or cab is None:
            continue
        less = abs(cab["slope"]) < abs(mlm["slope"])
        steeper = mlm if less else cab
        told = sign(found["interval"]) != 0 and sign(steeper["interval"]) != 0
        signs.append((1 if less else -1) if told else 0)
        parts.append(
            f"{dataset}: slope of CAB minus slope of MLM {_slope(found)} "
            f"(mlm {_slope(mlm)}, cab {_slope(cab)})"
        )
    return _unanimous(signs, 1), _evidence(parts, f"{score[1]} per tenfold cells")


def _differences(table, task, score, read_from="", level=0.95):
    """(data set, difference CAB minus MLM) for each data set that holds matched runs."""
    one, other = (select(table, task, score, model, read_from) for model in ("cab", "mlm"))
    for dataset, part in one.groupby("dataset"):
        found = difference(part, other[other["dataset"] == dataset], level=level)
        if found["points"]:
            yield dataset, found


def _slope(found) -> str:
    return number(found["slope"], found["interval"])


def _unanimous(signs, wanted: int) -> str:
    if signs and all(s == wanted for s in signs):
        return SUPPORTED
    return CONTRADICTED if signs and all(s == -wanted for s in signs) else UNDECIDED


def _evidence(parts, start: str) -> str:
    if not parts:
        return "The table holds no values for it (both models, two sizes; see the notes on scores)."
    return f"{start}: " + "; ".join(parts) + "."


def headline(rows: pd.DataFrame, fits: list[dict], claims: list[dict]) -> str:
    """What a study found, in at most eight lines for a computational biologist."""
    table = tidy(rows)
    lines = [
        _scope(table, fits),
        _trend_line(table, "Masked genes", "accuracy", "masked_genes", "accuracy"),
        _floor_line(table),
        _trend_line(table, "Cell types", "macro-F1", *CLASSES),
        _trend_line(table, "Batch mixing", "average batch score", *MIXING),
        _cab_line(table),
        _baseline_line(table),
        _verdict_line(claims),
    ]
    return "\n".join(line for line in lines if line)


def _scope(table, fits) -> str:
    runs = table[table["kind"] == "pretrained"]
    one = ["model", "scheme", "cells", "exposures", "subset_seed", "init_seed"]
    each = runs.drop_duplicates(one)
    sizes, unconverged = sorted(runs["cells"].unique()), int((each["converged"] == False).sum())  # noqa: E712
    if not sizes:
        return "Study: no pretrained model in the table."
    seeds = each.groupby(["model", "scheme", "cells"]).size()
    span = f"{sizes[0]:,.0f}" + (f" to {sizes[-1]:,.0f}" if len(sizes) > 1 else "")
    each_seeds = f"{seeds.min()}" + (f" to {seeds.max()}" if seeds.min() < seeds.max() else "")
    line = (
        f"Study: {len(each)} pretrained models; sizes: {len(sizes)} ({span} cells, "
        f"at most {runs['tokens'].max() / 1e6:,.1f} million gene tokens); "
        f"seeds per model and size: {each_seeds}"
    )
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


def _cab_line(table) -> str:
    words = []
    for score, read_from, name in (
        ("accuracy", "Q", "accuracy (both read from Q)"),
        ("repeat", "P", "repeated genes (both read from P)"),
    ):
        found = [f for _, f in _differences(table, "masked_genes", score, read_from)]
        if found:
            words.append(f"{name} {_tally([(f['mean'], f['mean_interval']) for f in found])}")
    return "CAB minus MLM, mean over sizes: " + "; ".join(words) + "." if words else ""


def _tally(found) -> str:
    """Values with intervals, one per data set, as `up in 2 of 3 data sets (+0.01 to +0.03)`."""
    values, signs = sorted(value for value, _ in found), [sign(interval) for _, interval in found]
    if len(found) == 1:
        word = {1: "up", -1: "down", 0: "unclear"}[signs[0]]
        return f"{word} {number(*found[0])}"
    words = ((1, "up"), (-1, "down"), (0, "unclear"))
    told = ", ".join(f"{word} in {signs.count(s)}" for s, word in words if s in signs)
    return f"{told} of {len(found)} data sets ({values[0]:+.3f} to {values[-1]:+.3f})"


def _at_largest(table, task, score, model, read_from="") -> float | None:
    """Mean over data sets and seeds at a model's largest size."""
    rows = select(table, task, score, model, read_from)
    largest = rows[rows["cells"] == rows["cells"].max()]
    return None if rows.empty else largest.groupby("dataset")["value"].mean().mean()


def _floor_line(table) -> str:
    names = {"mlm": "mlm", "cab": "cab", "untrained": "untrained",
             "most_frequent": "most frequent gene", "copy_input": "copied input"}  # fmt: skip
    words = []
    for model, name in names.items():
        read_from = READ_FROM.get(model, "P")
        value = _at_largest(table, "masked_genes", "accuracy", model, read_from)
        if value is not None:
            reading = f" (from {read_from})" if model in READ_FROM else ""
            words.append(f"{name}{reading} {value:.3f}")
    start = "Masked accuracy at the largest size, mean over data sets: "
    caution = f" {UNTRAINED}: train longer, or a larger model." if _below_floor(table) else ""
    return start + ", ".join(words) + "." + caution if words else ""


def _below_floor(table) -> bool:
    """Whether even the best trained model predicts no better than the most frequent gene."""
    floor = _at_largest(table, "masked_genes", "accuracy", "most_frequent")
    trained = [
        value
        for model, read_from in READ_FROM.items()
        if (value := _at_largest(table, "masked_genes", "accuracy", model, read_from)) is not None
    ]
    return floor is not None and bool(trained) and max(trained) <= floor


def _baseline_line(table) -> str:
    words = []
    for (task, score), name in ((CLASSES, "macro-F1"), (BIOLOGY, "AvgBIO"), (MIXING, "batch")):
        models = ("mlm", "cab", "untrained", "hvg", "pca")
        values = {m: _at_largest(table, task, score, m) for m in models}
        ranked = sorted((m for m in models if values[m] is not None), key=lambda m: -values[m])
        if ranked:
            words.append(f"{name} " + " > ".join(f"{m} {values[m]:.2f}" for m in ranked))
    start = "Embeddings at the largest size, best first: "
    return start + "; ".join(words) + "." if words else ""


def _verdict_line(claims) -> str:
    words = []
    for verdict in (SUPPORTED, CONTRADICTED, UNDECIDED, NOT_TESTED):
        numbers = [str(c["number"]) for c in claims if c["verdict"] == verdict]
        if numbers:
            words.append(f"{verdict} {', '.join(numbers)}")
    return "Published claims, numbered as in the report: " + "; ".join(words) + "."
