"""Scores table -> curves and report: python -m experiments.fit --table=scores.jsonl --out=DIR

With columns named, one curve of any table: --table=t.csv --x=cells --y=loss --out=fit.json
"""

import json
import os
import pathlib
import zlib

import pandas as pd
from absl import app, flags

from experiments.launch import parse, report_errors
from scaling import study
from scaling.analyse import tables
from scaling.analyse.forms import FORMS
from scaling.corpus.shards import read_table

TABLE = flags.DEFINE_string("table", None, "scores as .jsonl, .csv (each also .gz) or .parquet",
                            required=True)  # fmt: skip
OUT = flags.DEFINE_string("out", None, "folder that gets report.html, fits.json; with --x and --y "
                          "the .json file that gets the curve", required=True)  # fmt: skip
X = flags.DEFINE_string("x", "", "column of sizes D (of unique cells for --form=repeated)")
Y = flags.DEFINE_string("y", "", "column of scores; a name with `loss` in it is fitted on logs")
X2 = flags.DEFINE_string("x2", "", "column of model sizes N, or exposures for --form=repeated")
FORM = flags.DEFINE_string("form", "", f"of {', '.join(FORMS)}; '' chooses by AICc")
GROUP = flags.DEFINE_string("group", "", "columns, with commas; one curve for each of their values")
SEED = flags.DEFINE_string("seed-column", "", "column that tells repeated runs of a size apart")
flags.DEFINE_alias("seed_column", "seed-column")
SCALE = flags.DEFINE_string("scale", "", "raw (least squares) or log (Huber); '' goes by --y")
DRAWS = flags.DEFINE_integer("draws", 1000, "bootstrap refits of a curve", lower_bound=100)
NAMES = {"dataset": str, "model": str, "note": str}  # a data set may be called 3000
READERS = {
    ".jsonl": lambda path: pd.read_json(path, lines=True, dtype=NAMES, convert_dates=False),
    ".csv": lambda path: pd.read_csv(path, dtype=NAMES),
    ".parquet": read_table,
}


def fit() -> str:
    """Fits every curve of the table and writes the report, or fits the columns named."""
    path, out = pathlib.Path(TABLE.value), pathlib.Path(OUT.value)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in READERS or not path.is_file():
        raise ValueError(
            f"{path}: no table; give a {', '.join(READERS)} file of scores (or .jsonl.gz, .csv.gz)"
        )
    try:
        rows = READERS[kind](path)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: no readable table of scores ({error})") from error
    if X.value or Y.value:
        return _fit_columns(rows, path, out)
    verdict = study.analyse(rows, out, study.origin(out))
    return f"{verdict}\n\nReport: {out / 'report.html'}"


def _fit_columns(rows, path, out) -> str:
    if not (X.value and Y.value) or out.suffix != ".json":
        raise ValueError("give --x and --y, both columns of the table, and a .json file as --out")
    named = X.value, Y.value, X2.value, FORM.value, GROUP.value, SEED.value, SCALE.value
    try:
        found = tables.fit_columns(rows, *named, DRAWS.value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.part")
    unfinished.write_text(json.dumps(found, indent=1, allow_nan=False))
    os.replace(unfinished, out)
    return f"{tables.words(found)}\n\nRecord: {out}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(fit), flags_parser=parse)
