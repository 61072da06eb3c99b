"""Simulated truths -> how often intervals hold them: python -m experiments.coverage --out=X.csv"""

import os
import pathlib

from absl import app, flags
from tqdm import tqdm

from experiments.launch import parse, report_errors
from scaling.analyse import coverage

OUT = flags.DEFINE_string("out", None, "table that is written, .csv", required=True)
CASES = flags.DEFINE_integer("cases", 200, "simulated curves of each scenario", lower_bound=20)
DRAWS = flags.DEFINE_integer("draws", 384, "bootstrap refits of each", lower_bound=100)
FORM = flags.DEFINE_string("form", "", "only scenarios of this form")


def main() -> str:
    """Measures all scenarios; returns the rows that miss."""
    rows = coverage.null_tests(5 * CASES.value) if FORM.value in ("", "constant") else []
    chosen = [s for s in coverage.scenarios() if FORM.value in ("", s.form)]
    for scenario in tqdm(chosen, unit="scenario"):
        rows += coverage.measure(scenario, CASES.value, DRAWS.value)
        out = pathlib.Path(OUT.value)
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.part")
        coverage.table(rows).to_csv(unfinished, index=False)
        os.replace(unfinished, out)
    found = coverage.table(rows)
    return f"{found['within'].sum()} of {len(found)} rows within\n{found[~found['within']]}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(main), flags_parser=parse)
