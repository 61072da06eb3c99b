"""Corpus -> one trained run.

python -m experiments.pretrain --config=... --workdir=DIR [--corpus=DIR] [--profile=N]
"""

import json
import pathlib
import sys

from absl import flags

from experiments.launch import launch
from scaling import prepare
from scaling.pretrain import hosts, loop
from scaling.settings import Settings

CORPUS = flags.DEFINE_string("corpus", None, "a built corpus; by default that of the config")
PROFILE = flags.DEFINE_integer("profile", 0, "trace so many steps to run/profile", lower_bound=0)


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Trains into workdir/run, on a given corpus or on workdir/corpus."""
    corpus = hosts.one_by_one(lambda: prepare.corpus_of(settings, workdir, CORPUS.value))
    if hosts.first():
        print(prepare.describe(corpus), file=sys.stderr)
    done = loop.pretrain(settings.run, corpus, workdir / "run", PROFILE.value)
    return json.dumps(done, indent=1)


if __name__ == "__main__":
    launch(main, many_hosts=True)
