"""Run + corpus -> its scores beside the baselines', as a table and pictures.

python -m experiments.evaluate --config=... --workdir=DIR --checkpoint=RUN [--tasks=cell_types,...]
"""

import pathlib

from absl import flags

from experiments.launch import launch
from scaling import evaluation
from scaling.settings import Settings

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a run's folder, or RUN/checkpoints/STEP", required=True
)
CORPUS = flags.DEFINE_string("corpus", None, "a built corpus; by default that of the config")
TASKS = flags.DEFINE_list("tasks", None, "what to score; by default evaluate.tasks of the config")
BASELINES = flags.DEFINE_list("baselines", None, "beside what; by default evaluate.baselines")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Scores a checkpoint and the baselines on a corpus's held-out cells, into workdir/scores."""
    settings = evaluation.asking_for(settings, TASKS.value, BASELINES.value)
    checkpoint = pathlib.Path(CHECKPOINT.value)
    return evaluation.evaluate(settings, checkpoint, workdir, CORPUS.value)


if __name__ == "__main__":
    launch(main)
