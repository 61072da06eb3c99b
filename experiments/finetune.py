"""Run + labels -> a classifier's scores.

python -m experiments.finetune --config=... --workdir=DIR --checkpoint=RUN [--corpus=DIR]
"""

import dataclasses
import pathlib

import pandas as pd
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
    """Fine-tunes into workdir/finetune, on cells in the run's vocabulary; the main scores."""
    asked = finetune.FinetuneSettings.from_config(flags.FLAGS.config.to_dict())
    run = pathlib.Path(CHECKPOINT.value)
    words = settings.data.vocabulary or str(finetune.vocabulary_of(run))
    data = dataclasses.replace(settings.data, vocabulary=words)
    settings = dataclasses.replace(settings, data=data)
    corpus = prepare.corpus_of(settings, workdir, CORPUS.value)
    rows = finetune.finetune(asked, run, corpus, workdir / "finetune")
    table = pd.DataFrame(rows)
    whole = table[(table["of"] == "") & table["value"].notna()]
    shown = whole[["score", "value", "low", "high", "n"]]
    told = whole["note"].iloc[:1].tolist()  # of all test cells: which the run was pretrained on
    reason = finetune.not_kept(asked, run)
    kept = f"no classifier is kept ({reason})" if reason else "the classifier is there too"
    return "\n\n".join([
        shown.to_string(index=False, na_rep="", float_format="{:.3f}".format),
        *filter(None, told),
        f"All scores, with notes, and predictions: {workdir / 'finetune'}; {kept}",
    ])


if __name__ == "__main__":
    launch(main)
