"""Do labels help in pretraining? Simulated cells, with and without their types.

Command: python -m experiments.study --config=configs/supervised.py --workdir=runs/supervised
Result: not run at this size.
"""

import ml_collections

from configs import quickstart


def get_config() -> ml_collections.ConfigDict:
    """The quickstart's runs, half of which predict each cell's type too."""
    config = quickstart.get_config()
    config.study.supervisions = ((), ("cell_type",))
    config.study.objectives = ("cab",)
    return config
