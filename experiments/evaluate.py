"""Run + corpus -> its scores: python -m experiments.evaluate --config --workdir --run [--corpus]"""

import json
import pathlib

from absl import flags

from experiments.launch import launch
from scaling import study
from scaling.evaluate import scores
from scaling.evaluate.held_out import held_out_sets
from scaling.settings import Settings

RUN = flags.DEFINE_string("run", None, "folder of a trained run", required=True)
CORPUS = flags.DEFINE_string("corpus", None, "a built corpus; by default that of the config")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Scores the last checkpoint on the corpus's held-out cells; JSON lines."""
    corpus = study.corpus_of(settings, workdir, CORPUS.value)
    held_out = [
        scores.HeldOut(corpus, name, rows, settings.evaluate)
        for name, rows in held_out_sets(corpus, settings.evaluate).items()
    ]
    rows = study.evaluate_run(pathlib.Path(RUN.value), settings.run, held_out)
    return "\n".join(json.dumps(row) for row in rows)


if __name__ == "__main__":
    launch(main)
