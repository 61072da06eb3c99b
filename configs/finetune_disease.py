"""Diseased and healthy cells of donors unseen, fine-tuned by Geneformer's recipe.

Command: python -m experiments.finetune --config=configs/finetune_disease.py --checkpoint=RUN \\
  --workdir=DIR --config.data.h5ad=FILE --config.data.cell_type=COLUMN --config.data.donor=COLUMN
Published (Theodoris et al. 2023, cardiomyopathy): learning rate 8.04e-4, polynomial decay (power 1,
to 1e-7, as the library's name stands for) after 1,812 steps of warm-up, weight decay 0.2588, batch
12, 0.9 epoch, 2 frozen layers, split by donor. Result: not run yet.
"""

import ml_collections

from configs import finetune_cell_types


def get_config() -> ml_collections.ConfigDict:
    """Needs more than 24,160 training cells: fewer have no more steps than the warm-up."""
    config = finetune_cell_types.get_config()
    config.data.cell_type = "disease"
    config.finetune.frozen_layers = 2
    config.finetune.learning_rate = 8.04e-4
    config.finetune.warmup = 1_812
    config.finetune.end_rate = 1e-7
    config.finetune.weight_decay = 0.2588
    config.finetune.epochs = 0.9
    config.finetune.split = "donor"
    config.finetune.min_share = 0.0
    return config
