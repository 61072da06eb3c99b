"""Does it matter which genes are hidden in training? Simulated cells, three strategies.

Command: python -m experiments.study --config=configs/maskings.py --workdir=runs/maskings
Result: not run at this size.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's runs with every strategy that needs no file; all scored alike."""
    config = quickstart.get_config()
    config.masking.band = (0.0, 0.5)
    config.study.maskings = ("uniform", "band", "mam")
    config.study.objectives = ("cab",)
    return config
