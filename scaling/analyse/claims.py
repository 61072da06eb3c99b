"""The scores table in; a verdict on each published claim out.

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
# Each model read from what its own cross-entropy was taken on.
READ_FROM = {"mlm": "P", "cab": "Q", "cab_plain": "P"}
CAB = {"cab": "recalibrated variant", "cab_plain": "plain variant"}
CORRECTIONS = ("harmony", "scvi")
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
    """One dict per claim: number, claim, of, verdict, evidence (words with numbers and intervals).

    A claim about CAB is judged for each of its variants in the table, named by `of`; "" where there
    is but one.

    Args: rows: the scores table, one row per score.
    """
    table = tidy(rows)
    judged = [
        (1, "", _more_cells_raise_accuracy(table)),
        (2, "", _downstream_not_raised(table)),
        (3, "", (NOT_TESTED, "This study does not test it: the seven tasks of the preprint and the "
                 "other models ranked there are not in the table.")),
        (5, "", _lose_to_correction(table)),
    ]  # fmt: skip
    variants = variants_of(table)
    for cab in variants:
        of = CAB[cab] if len(variants) > 1 else ""
        if not {cab, "mlm"} <= set(table["model"]):
            lacking = NOT_TESTED, "This study does not test it: it does not train both objectives."
            judged += [(number, of, lacking) for number in (4, 6, 7, 8)]
            continue
        judged += [
            (4, of, _less_repetition(table, cab)),
            (6, of, _raises_accuracy_everywhere(table, cab)),
            (7, of, _depends_less(table, cab, CLASSES)),
            (8, of, _depends_less(table, cab, MIXING)),
        ]
    claims, below = [], below_floor(table)
    for number, of, (verdict, evidence) in sorted(judged, key=lambda found: found[0]):
        if below and verdict != NOT_TESTED:
            verdict, evidence = UNDECIDED, f"{UNTRAINED}. {evidence}"
        told = {"number": number, "claim": CLAIMS[number], "of": of}
        claims.append(told | {"verdict": verdict, "evidence": evidence})
    return claims


def variants_of(table: pd.DataFrame) -> list[str]:
    """The models of CAB in a table; "cab" where it has none."""
    return [name for name in CAB if name in set(table["model"])] or ["cab"]


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


def _lose_to_correction(table):
    """Every trained model at the largest size against the best correction, on both scores."""
    signs, parts = [], []
    for task, score in (BIOLOGY, MIXING):
        rows = select(table, task, score)
        for (dataset, model), own in rows[rows["cells"] > 0].groupby(["dataset", "model"]):
            others = rows[(rows["dataset"] == dataset) & rows["model"].isin(CORRECTIONS)]
            if model not in READ_FROM or others.empty:
                continue
            by_method = others.groupby("model")["value"].mean()
            found = trend(own["cells"], own["value"] - by_method.max())
            signs.append(sign(found["per_size"][-1]))
            gap = number(found["means"][-1], found["per_size"][-1])
            parts.append(f"{dataset}, {score}: {model} minus {by_method.idxmax()} {gap}")
    if not signs:
        return NOT_TESTED, (
            "This study does not test it: the table holds no dedicated batch-correction method "
            "(such as Harmony or scVI)."
        )
    return _unanimous(signs, -1), _evidence(parts, "At the largest size")


def _less_repetition(table, cab):
    """Decided by P, where training alone differs; a contrary interval from Q withholds it."""
    signs, parts = {"P": [], "Q": []}, []
    for read_from in signs:
        for score, wanted in (("repeat", -1), ("uniqueness", 1)):
            of = "masked_genes", score, read_from
            for dataset, found in differences_from_mlm(table, cab, *of):
                signs[read_from].append(wanted * sign(found["mean_interval"]))
                gap = number(found["mean"], found["mean_interval"])
                parts.append(f"{dataset}, {score} read from {read_from}: {gap}")
    verdict = _unanimous(signs["P"], 1)
    against = {SUPPORTED: -1, CONTRADICTED: 1}.get(verdict)
    verdict = UNDECIDED if against in signs["Q"] else verdict
    return verdict, _evidence(parts, "CAB minus MLM, mean over sizes")


def _raises_accuracy_everywhere(table, cab):
    """Every size must show it; one size against is enough to contradict (5 % over all sizes)."""
    rises, falls, parts = [], [], []
    for dataset, found in differences_from_mlm(table, cab, "masked_genes", "accuracy", "Q"):
        each = zip(found["sizes"], found["means"], found["per_size"], strict=True)
        gaps = [f"{number(gap, ends)} at {size:,.0f} cells" for size, gap, ends in each]
        parts.append(f"{dataset}: " + ", ".join(gaps))
        rises += [sign(ends) > 0 for ends in found["per_size"]]
    level = 1 - 0.05 / max(len(rises), 1)
    for _, found in differences_from_mlm(table, cab, "masked_genes", "accuracy", "Q", level):
        falls += [sign(ends) < 0 for ends in found["per_size"]]
    verdict = SUPPORTED if rises and all(rises) else CONTRADICTED if any(falls) else UNDECIDED
    return verdict, _evidence(parts, "CAB minus MLM in accuracy, both read from Q")


def _depends_less(table, cab, score):
    """The two slopes must differ, and the steeper one must itself exclude zero."""
    signs, parts = [], []
    of_mlm, of_cab = (trends(table, *score, model) for model in ("mlm", cab))
    for dataset, found in differences_from_mlm(table, cab, *score):
        if dataset not in of_mlm or dataset not in of_cab:
            continue
        one, other = of_mlm[dataset], of_cab[dataset]
        less = abs(other["slope"]) < abs(one["slope"])
        steeper = one if less else other
        told = sign(found["interval"]) != 0 and sign(steeper["interval"]) != 0
        signs.append((1 if less else -1) if told else 0)
        parts.append(
            f"{dataset}: slope of CAB minus slope of MLM {_slope(found)} "
            f"(mlm {_slope(one)}, {cab} {_slope(other)})"
        )
    return _unanimous(signs, 1), _evidence(parts, f"{score[1]} per tenfold cells")


def differences_from_mlm(table, cab, task, score, read_from="", level=0.95):
    """(data set, difference CAB minus MLM) for each data set that holds matched runs."""
    one, other = (select(table, task, score, model, read_from) for model in (cab, "mlm"))
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


def at_largest(table: pd.DataFrame, task, score, model, read_from="") -> float | None:
    """Mean over data sets and seeds at a model's largest size."""
    rows = select(table, task, score, model, read_from)
    largest = rows[rows["cells"] == rows["cells"].max()]
    return None if rows.empty else largest.groupby("dataset")["value"].mean().mean()


def below_floor(table: pd.DataFrame) -> bool:
    """Whether even the best trained model predicts no better than the most frequent gene."""
    floor = at_largest(table, "masked_genes", "accuracy", "most_frequent")
    trained = [
        value
        for model, read_from in READ_FROM.items()
        if (value := at_largest(table, "masked_genes", "accuracy", model, read_from)) is not None
    ]
    return floor is not None and bool(trained) and max(trained) <= floor
