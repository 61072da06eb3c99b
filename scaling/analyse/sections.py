"""Scores, fits and verdicts in; the sections of the report's page, each as HTML, out."""

import base64
import html
from pathlib import Path

import pandas as pd

from scaling.analyse.axes import variants_apart, varying
from scaling.analyse.claims import BIOLOGY, CLASSES, CONTRADICTED, MIXING, SUPPORTED, UNDECIDED
from scaling.analyse.compare import rank_table
from scaling.analyse.fits import LOWER_IS_BETTER
from scaling.analyse.plots import SCORES, STYLE, TASKS, drawable

MARK = {SUPPORTED: ("yes", "✓"), CONTRADICTED: ("no", "✗"), UNDECIDED: ("open", "?")}
RANKED = (CLASSES, BIOLOGY, MIXING)


def headline(text: str) -> str:
    """Its lines as a list."""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in text.splitlines())
    return f'<ul class="headline">{items}</ul>'


def claims(judged: list[dict]) -> str:
    """Claim, verdict and evidence, a row for each."""
    lines = []
    for claim in judged:
        style, mark = MARK.get(claim["verdict"], ("none", "–"))
        of = f" <b>CAB, {claim['of']}</b>" if claim["of"] else ""
        lines.append(
            f"<tr><td>{claim['number']}</td><td>{html.escape(claim['claim'])}{of}</td>"
            f'<td><span class="v {style}">{mark} {html.escape(claim["verdict"])}</span></td>'
            f"<td>{html.escape(claim['evidence']).replace('; ', ';<br>')}</td></tr>"
        )
    note = (
        "<p>A verdict is given only where a 95 % interval (in brackets) leaves out zero in every "
        "data set; claim 6 asks that of every size, and claim 2 is supported by one reliable fall "
        "(held to 5 % over all its trends). “Undecided” means that these runs cannot tell, not "
        "that there is no effect. "
        "Claims are those of the GF-CAB preprint, 10.1101/2025.11.04.686458.</p>"
    )
    head = "<tr><th></th><th>claim</th><th>verdict</th><th>evidence of this study</th></tr>"
    return f"{note}<table>{head}{''.join(lines)}</table>"


def convergence(table: pd.DataFrame) -> str:
    """Which runs were still learning."""
    runs = table[table["kind"] == "pretrained"].drop_duplicates(
        ["model", "scheme", "cells", "exposures", "subset_seed", "init_seed"]
    )
    late = runs[runs["converged"] == False]  # noqa: E712 (None is neither)
    if late.empty:
        return (
            "<p>No run is marked as not converged: over the last tenth of each run the held-out "
            "loss fell by 1 % at most. With a learning rate that decays to zero this says little "
            "about what longer runs would reach.</p>"
        )
    names = ", ".join(
        f"{model} at {cells:,.0f} cells ({len(part)})"
        for (model, cells), part in late.groupby(["model", "cells"])
    )
    return (
        f'<p class="flag"><b>{len(late)} of {len(runs)} runs had not converged</b>: '
        f"{html.escape(names)}. They are drawn hollow and take part in the fits and verdicts; "
        "their scores understate what that much data can give.</p>"
    )


def fit_notice(fits: list[dict]) -> str:
    """Which scores have no curve, and why."""
    missing = [f for f in fits if f["form"] is None]
    if not missing:
        return ""
    all_of_them = "No curve was fitted" if len(missing) == len(fits) else "Some have no curve"
    reasons = sorted({f["reason"] for f in missing})
    return (
        f'<p class="flag"><b>{all_of_them}</b> ({len(missing)} of {len(fits)}): '
        f"{html.escape('; '.join(reasons))}. Thin lines join the means instead.</p>"
    )


def missing(table: pd.DataFrame) -> str:
    """Which scores the cells cannot give, and why."""
    empty = table[table["value"].isna() & (table["note"] != "")]
    if empty.empty:
        return ""
    parts = empty.groupby(["dataset", "note"])["score"].agg(lambda names: sorted(set(names)))
    lines = "".join(
        f"<li>{html.escape(': '.join([dataset, ', '.join(names), note]))}</li>"
        for (dataset, note), names in parts.items()
    )
    return f'<p class="flag">Scores that these cells cannot give:</p><ul>{lines}</ul>'


def split_notes(table: pd.DataFrame) -> str:
    """How the cell-type probes were fitted."""
    scored = table[(table["task"] == "cell_types") & (table["note"] != "")]
    notes = scored[scored["value"].notna()].drop_duplicates(["dataset", "note"])
    if notes.empty:
        return ""
    lines = "".join(
        f"<li>{html.escape(row.dataset)}: {html.escape(row.note)}</li>"
        for row in notes.itertuples()
    )
    return f"<p>How the cell-type probes were fitted and tested:</p><ul>{lines}</ul>"


def figure(path: Path | None, title: str) -> str:
    """A picture inside the page; "" for none."""
    if path is None:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    title = html.escape(title)
    return f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'


def largest(table: pd.DataFrame, figure: dict) -> str:
    """Model x score at the largest size of each model, floors and baselines beside it."""
    rows = drawable(table)
    rows = rows[(rows["task"] == figure["task"]) & (rows["dataset"] == figure["dataset"])]
    rows = rows[rows["read_from"].isin([figure["read_from"], ""])]
    largest = rows["cells"] == rows.groupby("model")["cells"].transform("max")
    groups = rows[largest].groupby(["model", "score"])["value"]
    means, spreads = groups.mean().unstack(), groups.std().unstack()
    scores = [name for name in SCORES if name in means] + sorted(set(means) - set(SCORES))
    head = "".join(f'<th class="n">{html.escape(s)}</th>' for s in scores)
    lines = [f"<tr><th>model</th>{head}</tr>"]
    for model in [m for m in STYLE if m in means.index]:
        cells = []
        for score in scores:
            value, spread = means.loc[model, score], spreads.loc[model, score]
            column = means[score]
            best = value == (column.min() if score in LOWER_IS_BETTER else column.max())
            words = "–" if pd.isna(value) else f"{value:.3f}"
            words += "" if pd.isna(spread) else f" ± {spread:.3f}"
            cells.append(f'<td class="n{" best" if best else ""}">{words}</td>')
        lines.append(f"<tr><td>{html.escape(STYLE[model][3])}</td>{''.join(cells)}</tr>")
    return f"<table><caption>{html.escape(figure['title'])}</caption>{''.join(lines)}</table>"


def ranks(table: pd.DataFrame) -> str:
    """Ranks of the embeddings over all scores that rank them, each at its largest size."""
    rows = table[table["value"].notna() & table["model"].isin(STYLE)]
    rows = rows[pd.MultiIndex.from_frame(rows[["task", "score"]]).isin(RANKED)]
    rows = rows[rows["cells"] == rows.groupby("model")["cells"].transform("max")]
    if rows.empty:
        return ""
    rows = rows.assign(task=rows["dataset"] + ", " + [SCORES[name][0] for name in rows["score"]])
    counts = rows.groupby("model")["task"].nunique()
    whole = sorted(counts.index[counts == rows["task"].nunique()])
    if len(whole) < 2:
        return ""
    ranked = rank_table(rows[rows["model"].isin(whole)]).sort_values("mean")
    tasks = [name for name in ranked if name not in ("mean", "low", "high")]
    head = "".join(f'<th class="n">{html.escape(name)}</th>' for name in ["mean rank", *tasks])
    lines = []
    for model, row in ranked.iterrows():
        within = "" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
        cells = "".join(f'<td class="n">{row[name]:g}</td>' for name in tasks)
        name = html.escape(STYLE[model][3])
        lines.append(f'<tr><td>{name}</td><td class="n">{row["mean"]:.1f}{within}</td>{cells}</tr>')
    left = sorted(STYLE[model][3] for model in set(counts.index) - set(whole))
    without = f" Without all of these scores, and so unranked: {', '.join(left)}." if left else ""
    note = (
        "<p>Embeddings at their largest size, 1 = best, and the mean over these scores with the "
        f"95 % interval that other seeds would give.{html.escape(without)}</p>"
    )
    start = f"<h2>Ranks of the embeddings</h2>{note}"
    return f"{start}<table><tr><th>model</th>{head}</tr>{''.join(lines)}</table>"


def fits(found: list[dict]) -> str:
    """Every curve with its parameters, a table for each task and data set; "" for no curve."""
    if not any(f["form"] for f in found):
        return ""
    shown = [f for f in found if f["positions"] in ("mask", "")]
    note = (
        "<h2>Fitted curves</h2>"
        "<p>Forms: constant E (no scaling), power E + A·D<sup>−alpha</sup>, saturating "
        "S_inf − (D/D0)<sup>−s</sup>; D = unique cells; the form of least AICc. In brackets 95 % "
        "intervals. Saturation point: the smallest size above 95 % of the best mean (≤: already "
        "the smallest tried; ≥: only the largest; not defined where lower is better). Left-out "
        "error: miss at the largest size when fitted without it. Masked genes at all "
        "selected positions are in fits.json.</p>"
    )
    tables = [note]
    for task, title in TASKS.items():
        for dataset in sorted({f["dataset"] for f in shown if f["task"] == task}):
            here = [f for f in shown if (f["task"], f["dataset"]) == (task, dataset)]
            head = "".join(
                f"<th>{name}</th>"
                for name in ("score", "model", "form", "parameters", "AICc", "left-out error",
                             "saturation (cells)", "flags")
            )  # fmt: skip
            lines = "".join(_fit_line(f) + _without_unconverged(f) for f in here)
            caption = html.escape(f"{title}, {dataset}")
            tables.append(
                f'<table class="small"><caption>{caption}</caption><tr>{head}</tr>{lines}</table>'
            )
    return "\n".join(tables)


def _fit_line(fit) -> str:
    reading = f" (read from {fit['read_from']})" if fit["read_from"] else ""
    parameters = []
    for name, value in fit["parameters"].items():
        ends = fit["intervals"].get(name)
        within = "" if ends is None else f" [{_short(ends[0])}, {_short(ends[1])}]"
        parameters.append(f"{name} = {_short(value)}{within}")
    saturation, point = fit["saturation"], "–"
    if saturation and fit["form"]:
        censored = "≤ " if saturation["at_most"] else "≥ " if saturation["at_least"] else ""
        point = f"{censored}{saturation['size']:,.0f}"
        if saturation["interval"]:
            point += " [{:,.0f}, {:,.0f}]".format(*saturation["interval"])
    cells = [
        fit["score"] + reading, fit["model"], fit["form"] or f"none: {fit['reason']}",
        "; ".join(parameters), "–" if fit["aicc"] is None else f"{fit['aicc']:.1f}",
        _short(fit["left_out_error"]), point, "; ".join(fit["flags"]),
    ]  # fmt: skip
    return "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _without_unconverged(fit) -> str:
    """The same curve of converged runs alone; "" where all are."""
    other = fit["without_unconverged"]
    if other is None:
        return ""
    named = {"score": fit["score"], "model": f"{fit['model']}, converged runs alone"}
    return _fit_line(fit | other | named)


def _short(value) -> str:
    return "–" if value is None else f"{value:.3g}"


def differences(found: list[dict]) -> str:
    """Exponents, offsets and saturation points of trained models, less those of mlm."""
    if not found:
        return ""
    kinds = ("exponent", "offset", "saturation")
    head = "".join(f"<th>{name}</th>" for name in ("score", "minus mlm", "form", *kinds))
    lines, apart, told = [], 0, 0
    for pair in found:
        cells = []
        for kind in kinds:
            gaps = [g for g in pair["parameters"].values() if g["what"] == kind and g["interval"]]
            parts = []
            for gap in gaps:
                if not gap["identified"]:
                    parts.append("not identified")
                    continue
                low, high = gap["interval"]
                beyond = low > 0 or high < 0
                apart, told = apart + beyond, told + 1
                text = f"{gap['value']:+.3g} [{_short(low)}, {_short(high)}]"
                parts.append(f"<b>{text}</b>" if beyond else text)
            cells.append("; ".join(parts) or "–")
        reading = f" (read from {pair['read_from']})" if pair["read_from"] else ""
        named = f"{pair['score']}{reading}, {pair['dataset']}", pair["other"], pair["form"]
        row = "".join(f"<td>{html.escape(text)}</td>" for text in named)
        lines.append(f"<tr>{row}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (
        "<h2>Does the objective change the curve?</h2><p>Each model's curve less that of mlm, both "
        "in the form that fits the two best; 95 % intervals in brackets, bold where they leave "
        f"zero out: {apart} of {told}. Seeds of two models are not paired. Of two flat curves "
        "(constant) only the offset can differ. Saturation: logarithm to base 10 of the size at "
        "which 95 % of the plateau is reached. Not identified: the scores leave it open within "
        "the searched range.</p>"
        f'<table class="small"><tr>{head}</tr>{"".join(lines)}</table>'
    )


def residuals(figures: list[dict]) -> str:
    """Pictures of what the curves leave over; "" for no curve."""
    drawn = [f for f in figures if f["residuals"]]
    if not drawn:
        return ""
    return (
        "<h2>What the curves leave over</h2><p>Each run's score minus its fitted curve: points "
        "that lean to one side at some sizes say that the form does not fit.</p>"
        + "\n".join(figure(f["residuals"], f"Residuals: {f['title']}") for f in drawn)
    )


def settings(table: pd.DataFrame) -> str:
    """Scores of every value of a study's axes, side by side; "" where nothing varies.

    Args:
      table: tidied rows, their data sets not yet told apart by axes.
    """
    table = variants_apart(table)
    axes = varying(table)
    shown = {("masked_genes", "accuracy"): "masked accuracy"} | {
        pair: SCORES[pair[1]][0] for pair in (CLASSES, BIOLOGY, MIXING)
    }
    rows = drawable(table[table["kind"] == "pretrained"])
    rows = rows[pd.MultiIndex.from_frame(rows[["task", "score"]]).isin(list(shown))]
    rows = rows[rows["read_from"].isin(["", "Q"]) & (rows["cells"] == rows["cells"].max())]
    if not axes or rows.empty:
        return ""
    tables = []
    for dataset, part in rows.groupby("dataset"):
        present = {of: name for of, name in shown.items() if of[1] in set(part["score"])}
        heads = [*axes, "model", *present.values()]
        lines = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
        for key, alike in part.groupby([*axes, "model"], dropna=False):
            cells = ["–" if pd.isna(value) else str(value) for value in key]
            for _, score in present:
                found = alike[alike["score"] == score]
                cells.append(_over_seeds(found))
            lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
        tables.append(f"<table><caption>{html.escape(dataset)}</caption>{''.join(lines)}</table>")
    return (
        "<h2>The settings, side by side</h2><p>At the largest size; means over seeds, in brackets "
        "from the lowest to the highest end of the seeds' 95 % intervals over cells. Masked "
        "accuracy is read from Q. Brackets that overlap show neither a difference nor "
        "that there is none.</p>"
        + "\n".join(tables)
    )


def _over_seeds(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "–"
    ends = [rows["low"].min(), rows["high"].max()] if {"low", "high"} <= set(rows) else [None]
    within = "" if pd.isna(ends).any() else " [{:.3f}, {:.3f}]".format(*ends)
    return f"{rows['value'].mean():.3f}{within}"


def provenance(known: dict) -> str:
    """What it takes to repeat the study."""
    lines = (
        f"<tr><th>{html.escape(str(name))}</th><td><pre>{html.escape(str(value))}</pre></td></tr>"
        for name, value in known.items()
    )
    return f"<table>{''.join(lines)}</table>"
