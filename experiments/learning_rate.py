"""Config -> held-out loss by width and learning rate, standard and muP: JSON and a plot.

python -m experiments.learning_rate --config=configs/quickstart.py --workdir=DIR
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

WIDTHS = flags.DEFINE_list("widths", ["64", "256"], "D; the first is muP's base width")
RATES = flags.DEFINE_list("rates", "2.5e-4,5e-4,1e-3,2e-3,4e-3".split(","), "learning rates")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Trains into workdir/runs; writes workdir/learning-rate.json and .png."""
    corpus = prepare.corpus_of(settings, workdir)
    widths, rates = list(map(int, WIDTHS.value)), list(map(float, RATES.value))
    rows = sweep.sweep(settings.run, corpus, widths, rates, workdir / "runs")
    record = {
        "command": shlex.join(["python", "-m", "experiments.learning_rate", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "best": sweep.best(rows),
        "rows": rows,
    }
    out = workdir / "learning-rate.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    sweep.plot(rows, out.with_suffix(".png"))
    return json.dumps(record["best"])


if __name__ == "__main__":
    launch(main)
