"""Does it matter how expression is written into a cell's tokens? Simulated cells, all encodings.

Command: python -m experiments.study --config=configs/encodings.py --workdir=runs/encodings
Result: not run at this size.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's runs with every input encoding, and how each bears noise."""
    config = quickstart.get_config()
    config.study.encodings = ("ranks", "bins", "projection", "counts")
    config.study.objectives = ("cab",)
    config.evaluate.tasks = (*config.evaluate.tasks, "noise")
    return config
