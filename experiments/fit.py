"""Scores table -> curves and report: python -m experiments.fit --table=scores.jsonl --out=DIR"""

import pathlib

import pandas as pd
from absl import app, flags

from experiments.launch import report_errors
from scaling import study
from scaling.analyse import report

TABLE = flags.DEFINE_string("table", None, "scores as .jsonl, .csv or .parquet", required=True)
OUT = flags.DEFINE_string("out", None, "folder that gets report.html, fits.json", required=True)
READERS = {
    ".jsonl": lambda path: pd.read_json(path, lines=True),
    ".csv": pd.read_csv,
    ".parquet": pd.read_parquet,
}


def fit() -> str:
    """Fits every curve of the table and writes the report; returns the verdict."""
    path = pathlib.Path(TABLE.value)
    if path.suffix not in READERS or not path.is_file():
        raise ValueError(f"{path}: no table; give a {', '.join(READERS)} file of scores")
    out = pathlib.Path(OUT.value)
    verdict = report.analyse(READERS[path.suffix](path), out, study.provenance(out))
    return f"{verdict}\n\nReport: {out / 'report.html'}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(fit))
