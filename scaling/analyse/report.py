"""Scores, fits and claims in; one self-contained report.html, PNG panels and fits.json out."""

import base64
import html
import json
import os
from pathlib import Path

import pandas as pd

from scaling.analyse.axes import apart
from scaling.analyse.claims import CONTRADICTED, SUPPORTED, UNDECIDED, judge_claims
from scaling.analyse.fits import LOWER_IS_BETTER, fit_table
from scaling.analyse.headline import headline
from scaling.analyse.plots import SCORES, STYLE, TASKS, draw_all, drawable
from scaling.analyse.trends import tidy

MARK = {SUPPORTED: ("yes", "✓"), CONTRADICTED: ("no", "✗"), UNDECIDED: ("open", "?")}
STYLE_SHEET = """
body { font: 15px/1.45 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em;
       color: #1a1a1a; }
h1 { margin-bottom: .2em } h2 { margin-top: 2em; border-bottom: 1px solid #999 }
.headline li { margin: .35em 0 } .headline { background: #f3f6f9; padding: 1em 1em 1em 2.2em }
table { border-collapse: collapse; font-size: 13px; margin: .6em 0 1.4em; width: 100% }
caption { text-align: left; font-weight: bold; padding: .3em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3em .5em; text-align: left;
         vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.best { font-weight: bold; text-decoration: underline }
.v { white-space: nowrap; font-weight: bold; padding: .1em .5em; border-radius: .3em;
     border: 1px solid #555 }
.yes { background: #bfe3f5 } .no { background: #f7cdb0 } .open { background: #fff3bf }
.none { background: #eee } img { width: 100% } figure { margin: 1em 0 } .small { font-size: 12px }
.flag { color: #8a3b00 } pre { white-space: pre-wrap; background: #f4f4f4; padding: .6em }
@media print { body { margin: 0; max-width: none } figure, tr { break-inside: avoid }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""


def analyse(rows: pd.DataFrame, out: Path, provenance: dict) -> str:
    """Fit, judge, draw and write the report of a study into `out`; returns the headline.

    Args:
      rows: the scores table, one row per score.
      out: folder for report.html, fits.json and plots/*.png; made where absent.
      provenance: what it takes to repeat the study (command, commit, packages, time), as
        {name: text}.
    Raises: ValueError on an empty table and as `fit_table` does.
    """
    if rows.empty:
        raise ValueError("the scores table is empty: no run has been scored; see the study's log")
    rows = tidy(apart(rows))
    # A study's table holds more than curves can show; all is in scores.csv.
    rows = rows[~rows["task"].isin(TASKS) | rows["score"].isin(SCORES)]
    fits = fit_table(rows)
    claims = judge_claims(rows)
    write_report(out, rows, fits, claims, provenance)
    return headline(rows, fits, claims)


def write_report(
    workdir: Path, rows: pd.DataFrame, fits: list[dict], claims: list[dict], provenance: dict
) -> Path:
    """Write report.html (nothing outside it is needed to read it), fits.json and the PNGs."""
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    figures = draw_all(rows, fits, workdir / "plots")
    record = {"fits": fits, "claims": claims, "provenance": provenance}
    _write(workdir / "fits.json", json.dumps(record, indent=1, allow_nan=False))
    table = tidy(rows)
    body = [
        "<h1>Does more pretraining data help?</h1>",
        _headline(headline(rows, fits, claims)),
        "<h2>Published claims, tested</h2>",
        _claims(claims),
        "<h2>Scores against data size</h2>",
        _convergence(table),
        _fit_notice(fits),
        _missing(table),
        _split_notes(table),
        *[_figure(figure) for figure in figures],
        "<h2>Scores at the largest size</h2>",
        "<p>Mean over seeds ± their standard deviation; the best value is underlined. Masked "
        "genes are scored at <code>&lt;mask&gt;</code> positions only. Models are those of the "
        "largest size, baselines and floors those fitted at it (untrained: no data).</p>",
        *[_largest(table, figure) for figure in figures],
        "<h2>Fitted curves</h2>",
        _fits(fits),
        "<h2>To repeat this study</h2>",
        _provenance(provenance),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Scaling study</title><style>{STYLE_SHEET}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    return _write(workdir / "report.html", page)


def _headline(text: str) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in text.splitlines())
    return f'<ul class="headline">{items}</ul>'


def _claims(claims) -> str:
    lines = []
    for claim in claims:
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


def _convergence(table) -> str:
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


def _fit_notice(fits) -> str:
    missing = [f for f in fits if f["form"] is None]
    if not missing:
        return ""
    all_of_them = "No curve was fitted" if len(missing) == len(fits) else "Some have no curve"
    reasons = sorted({f["reason"] for f in missing})
    return (
        f'<p class="flag"><b>{all_of_them}</b> ({len(missing)} of {len(fits)}): '
        f"{html.escape('; '.join(reasons))}. Thin lines join the means instead.</p>"
    )


def _missing(table) -> str:
    empty = table[table["value"].isna() & (table["note"] != "")]
    if empty.empty:
        return ""
    parts = empty.groupby(["dataset", "note"])["score"].agg(lambda names: sorted(set(names)))
    lines = "".join(
        f"<li>{html.escape(': '.join([dataset, ', '.join(names), note]))}</li>"
        for (dataset, note), names in parts.items()
    )
    return f'<p class="flag">Scores that these cells cannot give:</p><ul>{lines}</ul>'


def _split_notes(table) -> str:
    scored = table[(table["task"] == "cell_types") & (table["note"] != "")]
    notes = scored[scored["value"].notna()].drop_duplicates(["dataset", "note"])
    if notes.empty:
        return ""
    lines = "".join(
        f"<li>{html.escape(row.dataset)}: {html.escape(row.note)}</li>"
        for row in notes.itertuples()
    )
    return f"<p>How the cell-type probes were fitted and tested:</p><ul>{lines}</ul>"


def _figure(figure) -> str:
    data = base64.b64encode(figure["path"].read_bytes()).decode()
    title = html.escape(figure["title"])
    return f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'


def _largest(table, figure) -> str:
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


def _fits(fits) -> str:
    shown = [f for f in fits if f["positions"] in ("mask", "")]
    note = (
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
            lines = "".join(_fit_line(f) for f in here)
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
    if saturation:
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


def _short(value) -> str:
    return "–" if value is None else f"{value:.3g}"


def _provenance(provenance: dict) -> str:
    lines = (
        f"<tr><th>{html.escape(str(name))}</th><td><pre>{html.escape(str(value))}</pre></td></tr>"
        for name, value in provenance.items()
    )
    return f"<table>{''.join(lines)}</table>"


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path
