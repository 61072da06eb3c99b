"""Scores table -> curves and report: python -m experiments.fit --table=scores.jsonl --out=DIR"""

import functools
import pathlib

import pandas as pd
from absl import app, flags

from experiments.launch import parse, report_errors
from scaling import study
from scaling.analyse import report

TABLE = flags.DEFINE_string("table", None, "scores as .jsonl, .csv or .parquet", required=True)
OUT = flags.DEFINE_string("out", None, "folder that gets report.html, fits.json", required=True)
NAMES = {"dataset": str, "model": str, "note": str}  # a data set may be called 3000
READERS = {
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=NAMES, convert_dates=False),
    ".csv": lambda path: pd.read_csv(path, dtype=NAMES),
    ".parquet": functools.partial(pd.read_parquet, use_threads=False),  # see corpus/shards.py
}


def fit() -> str:
    """Fits every curve of the table and writes the report; returns the verdict."""
    path = pathlib.Path(TABLE.value)
    if path.suffix not in READERS or not path.is_file():
        raise ValueError(f"{path}: no table; give a {', '.join(READERS)} file of scores")
    try:
        rows = READERS[path.suffix](path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no readable table of scores ({error})") from error
    out = pathlib.Path(OUT.value)
    verdict = report.analyse(rows, out, study.origin(out))
    return f"{verdict}\n\nReport: {out / 'report.html'}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(fit), flags_parser=parse)
