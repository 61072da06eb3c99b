"""Does every stage still run? The smallest study, minutes long; its numbers mean nothing.

Command: python -m experiments.study --config=configs/smoke.py --workdir=runs/smoke
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """One layer, two sizes, one seed."""
    config = default.get_config()
    config.simulation.cells = 600
    config.simulation.genes = 500
    config.model.layers = 1
    config.model.width = 16
    config.model.heads = 2
    config.model.feed_forward = 32
    config.model.length = 64
    config.train.steps = 25
    config.train.epochs = 0.0
    config.train.batch = 8
    config.train.held_out_cells = 32
    config.evaluate.cells = 120
    config.study.sizes = (50, 200)
    config.study.seeds = (0,)
    return config
