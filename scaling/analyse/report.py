"""Scores, fits and claims in; one self-contained report.html, PNG panels and fits.json out."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scaling.analyse import sections
from scaling.analyse.axes import apart
from scaling.analyse.claims import judge_claims
from scaling.analyse.compare import from_mlm
from scaling.analyse.fits import fit_table
from scaling.analyse.headline import headline
from scaling.analyse.plots import SCORES, TASKS, draw_all
from scaling.analyse.trends import tidy

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


def analyse(
    rows: pd.DataFrame, out: Path, provenance: dict, under_noise: Sequence[dict] = ()
) -> str:
    """Fit, judge, draw and write the report of a study into `out`; returns the headline.

    Args:
      rows: the scores table, one row per score.
      out: folder for report.html, fits.json and plots/*.png; made where absent.
      provenance: what it takes to repeat the study (command, commit, packages, time), as
        {name: text}.
      under_noise: path and title of pictures of scores under noise.
    Raises: ValueError on an empty table and as `fit_table` does.
    """
    if rows.empty:
        raise ValueError("the scores table is empty: no run has been scored; see the study's log")
    settings = sections.settings(tidy(rows))
    rows = tidy(apart(rows))
    # A study's table holds more than curves can show; all is in scores.csv.
    rows = rows[~rows["task"].isin(TASKS) | rows["score"].isin(SCORES)]
    fits = fit_table(rows)
    claims = judge_claims(rows)
    gaps = from_mlm(rows, fits)
    write_report(out, rows, fits, claims, provenance, gaps, under_noise, settings)
    return headline(rows, fits, claims)


def write_report(
    workdir: Path, rows: pd.DataFrame, fits: list[dict], claims: list[dict], provenance: dict,
    gaps: Sequence[dict] = (), under_noise: Sequence[dict] = (), settings: str = "",
) -> Path:
    """Write report.html (nothing outside it is needed to read it), fits.json and the PNGs.

    `settings` is the section that compares the values of a study's axes.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    figures = draw_all(rows, fits, workdir / "plots")
    record = {"fits": fits, "claims": claims, "differences": gaps, "provenance": provenance}
    _write(workdir / "fits.json", json.dumps(record, indent=1, allow_nan=False))
    table = tidy(rows)
    body = [
        "<h1>Does more pretraining data help?</h1>",
        sections.headline(headline(rows, fits, claims)),
        "<h2>Published claims, tested</h2>",
        sections.claims(claims),
        settings,
        "<h2>Scores against data size</h2>",
        sections.convergence(table),
        sections.fit_notice(fits),
        sections.missing(table),
        sections.split_notes(table),
        *[sections.figure(figure["path"], figure["title"]) for figure in figures],
        "<h2>Scores at the largest size</h2>",
        "<p>Mean over seeds ± their standard deviation; the best value is underlined. Masked "
        "genes are scored at <code>&lt;mask&gt;</code> positions only. Models are those of the "
        "largest size, baselines and floors those fitted at it (untrained: no data).</p>",
        *[sections.largest(table, figure) for figure in figures],
        sections.ranks(table),
        *(["<h2>Cell types under noise</h2>"] if under_noise else []),
        *[sections.figure(figure["path"], figure["title"]) for figure in under_noise],
        sections.fits(fits),
        sections.differences(gaps),
        sections.residuals(figures),
        "<h2>To repeat this study</h2>",
        sections.provenance(provenance),
    ]
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Scaling study</title><style>{STYLE_SHEET}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    return _write(workdir / "report.html", page)


def _write(path: Path, text: str) -> Path:
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return path
