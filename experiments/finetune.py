"""Run + labels -> a classifier's scores.

python -m experiments.finetune --config=... --workdir=DIR --checkpoint=RUN [--corpus=DIR]
"""

import dataclasses
import json
import pathlib
import sys

from absl import flags

from experiments.launch import launch
from scaling import prepare
from scaling.evaluate import finetune
from scaling.settings import Settings

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a run's folder, or RUN/checkpoints/STEP", required=True
)
CORPUS = flags.DEFINE_string("corpus", None, "a built corpus; by default that of the config")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Fine-tunes into workdir/finetune, on cells in the run's vocabulary; JSON lines."""
    asked = finetune.FinetuneSettings.from_config(flags.FLAGS.config.to_dict())
    run = pathlib.Path(CHECKPOINT.value)
    words = settings.data.vocabulary or str(finetune.vocabulary_of(run))
    data = dataclasses.replace(settings.data, vocabulary=words)
    settings = dataclasses.replace(settings, data=data)
    corpus = prepare.corpus_of(settings, workdir, CORPUS.value)
    rows = finetune.finetune(asked, run, corpus, workdir / "finetune")
    whole = [row for row in rows if row["of"] == "" and row["value"] is not None][:2]
    told = "; ".join(f"{row['score']} {row['value']:.3f}" for row in whole)
    reason = finetune.not_kept(asked, run)
    kept = f"no classifier is kept ({reason})" if reason else "the classifier is there too"
    print(f"{told}; scores and predictions: {workdir / 'finetune'}; {kept}", file=sys.stderr)
    return "\n".join(json.dumps(row) for row in rows)


if __name__ == "__main__":
    launch(main)
