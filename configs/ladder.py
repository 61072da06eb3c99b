"""One rung of the ladder of encoders, by name: the recipe of V1 carried over to its width.

Command: python -m experiments.study --config=configs/ladder.py:10m --workdir=runs/10m \\
  --config.data.h5ad=GLOB
The rungs stand in docs/ladder.md. Result: not run yet.
"""

import ml_collections

from configs import default
from scaling.pretrain import ladder


def get_config(rung: str = "") -> ml_collections.ConfigDict:
    """A rung's encoder; the learning rate is V1's, at V1's width, and is transferred from there."""
    config = default.get_config()
    of = ladder.rung(rung)
    config.model.layers = of.layers
    config.model.width = of.width
    config.model.heads = of.heads
    config.model.feed_forward = of.feed_forward
    config.model.base_width = 256
    return config
