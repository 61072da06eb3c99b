"""Does the best learning rate hold for another width? On simulated cells, with and without muP.

Command: python -m experiments.learning_rate --config=configs/learning_rate.py \\
  --workdir=runs/learning-rate
Result: docs/ladder.md.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's cells and encoder, V2's feed-forward width, plain masked-gene prediction."""
    config = quickstart.get_config()
    config.model.heads = 1
    config.model.feed_forward = 256
    config.objective.name = "mlm"
    config.train.cells = 2_500
    return config
