"""Simulated truths -> how often intervals hold them: python -m experiments.coverage --out=X.csv"""

import pathlib

from absl import app, flags

from experiments.launch import parse, report_errors
from scaling.analyse import coverage

OUT = flags.DEFINE_string("out", None, "table that is written, .csv", required=True)
CASES = flags.DEFINE_integer("cases", 200, "simulated curves of each scenario", lower_bound=20)
DRAWS = flags.DEFINE_integer("draws", 384, "bootstrap refits of each", lower_bound=100)
FORMS = ["", *sorted({form for form, _ in coverage.TRUTHS})]
FORM = flags.DEFINE_enum("form", "", FORMS, "only scenarios of this form")


def main() -> str:
    """Measures all scenarios; returns the rows that miss."""
    chosen = [s for s in coverage.scenarios() if FORM.value in ("", s.form)]
    found = coverage.measure_all(chosen, CASES.value, DRAWS.value, pathlib.Path(OUT.value))
    return f"{found['within'].sum()} of {len(found)} rows within\n{found[~found['within']]}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(main), flags_parser=parse)
