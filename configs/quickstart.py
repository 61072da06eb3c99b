"""Does more data help, on simulated cells? The study that `make study` runs.

Command: make study, or: python -m experiments.study --config=configs/quickstart.py \\
  --workdir=runs/quickstart
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """A two-layer encoder that sees 2,560 cells in every run, however many of them are unique."""
    config = default.get_config()
    config.simulation.cells = 5_000
    config.simulation.genes = 1_000
    config.simulation.depth = 400.0
    config.model.layers = 2
    config.model.width = 64
    config.model.heads = 2
    config.model.feed_forward = 128
    config.model.length = 128
    config.model.dropout = config.model.attention_dropout = 0.0
    config.train.steps = 320
    config.train.epochs = 0.0
    config.train.batch = 8
    config.train.learning_rate = 2e-3
    config.train.checkpoint_every = 160
    config.evaluate.cells = 300
    config.study.sizes = (100, 300, 900, 2_500)
    return config
