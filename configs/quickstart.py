"""Does more data help, on simulated cells? The study that `make study` runs.

Command: make study, or: python -m experiments.study --config=configs/quickstart.py \\
  --workdir=runs/quickstart
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """A two-layer encoder, equal steps at every size."""
    config = default.get_config()
    config.simulation.cells = 8_000
    config.model.layers = 2
    config.model.width = 64
    config.model.heads = 4
    config.model.feed_forward = 128
    config.model.length = 128
    config.train.steps = 150
    config.train.epochs = 0.0
    config.train.batch = 32
    config.train.learning_rate = 3e-3
    config.train.checkpoint_every = 100
    config.evaluate.cells = 1_000
    config.study.sizes = (100, 400, 1_600, 6_000)
    return config
