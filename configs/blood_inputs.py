"""Three maskings and three input encodings, each scored under noise, on real human blood cells.

Command: python -m experiments.study --config=configs/blood_inputs.py --at_once=2 \\
  --config.data.h5ad=GLOB --config.data.score_on=GLOB --config.data.gene_names=TABLE.csv \\
  --workdir=runs/blood_inputs
Result: experiments/blood_inputs/README.md.
"""

import ml_collections

from configs import blood_study


def get_config() -> ml_collections.ConfigDict:
    """The encoder of configs/blood_study.py, one objective, two sizes; runs see 10,240 cells."""
    config = blood_study.get_config()
    config.train.steps = config.train.checkpoint_every = 640
    config.train.learning_rate = 2e-3
    config.evaluate.tasks = (*config.evaluate.tasks, "noise")
    config.evaluate.baselines = ("hvg", "pca")
    config.masking.band = (0.0, 0.5)
    study = config.study
    study.sizes = (1_000, 10_000)
    study.seeds = (0, 1)
    study.objectives = ("cab",)
    study.variants = ("recalibrated",)
    study.weights = (("recalibrated", 1.0),)
    study.maskings = ("uniform", "band", "mam")
    study.encodings = ("ranks", "bins", "projection")
    return config
