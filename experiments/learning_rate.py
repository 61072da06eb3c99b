"""Config -> held-out loss by width and learning rate, standard and muP: JSON and a plot.

python -m experiments.learning_rate --config=configs/quickstart.py --workdir=DIR [--rates=...]
With --ends: at a study's smallest and largest number of cells and encoder, in place of widths.
"""

import json
import pathlib
import shlex
import sys

from absl import flags

from experiments.launch import launch
from scaling import prepare, provenance
from scaling.pretrain import sweep
from scaling.settings import Settings
from scaling.sweeps import jobs, rates

WIDTHS = flags.DEFINE_list("widths", ["64", "256"], "D; the first is muP's base width")
RATES = flags.DEFINE_list("rates", "2.5e-4,5e-4,1e-3,2e-3,4e-3".split(","), "learning rates")
ENDS = flags.DEFINE_bool("ends", False, "sweep at the ends of the config's study, not over widths")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Trains into workdir/runs, or with --ends into workdir/rates; writes learning-rate.json."""
    if ENDS.value:
        jobs.plan(settings)  # refuses what it can before a corpus is built
    corpus, given = prepare.corpus_of(settings, workdir), list(map(float, RATES.value))
    out = workdir / "learning-rate.json"
    if ENDS.value:
        best, rows, text = rates.at_ends(settings, corpus, given, workdir / "rates")
    else:
        widths = list(map(int, WIDTHS.value))
        rows = sweep.sweep(settings.run, corpus, widths, given, workdir / "runs")
        best = sweep.best(rows)
        text = json.dumps(best)
        sweep.plot(rows, out.with_suffix(".png"))
    record = {
        "command": shlex.join(["python", "-m", "experiments.learning_rate", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "best": best,
        "rows": rows,
    }
    out.write_text(json.dumps(record, indent=1) + "\n")
    return text


if __name__ == "__main__":
    launch(main)
