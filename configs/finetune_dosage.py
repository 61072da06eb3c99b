"""Dosage sensitivity of transcription factors, fine-tuned by Geneformer's recipe.

Command: python -m experiments.finetune --config=configs/finetune_dosage.py --checkpoint=RUN \\
  --workdir=DIR --config.data.h5ad=GLOB --config.finetune.gene_classes=dosage_sens_tf_labels.csv
Published (Theodoris et al. 2023): every occurrence of 122 sensitive and 368 insensitive factors in
10,000 cells, 5 folds of genes, learning rate 5e-5, linear decay after 500 steps of warm-up, weight
decay 0.001, batch 12, 1 epoch, 4 frozen layers; AUC 0.86 +- 0.03 over occurrences in the same
cells. Ours are occurrences in cells that were not trained on. Result: not run yet.
"""

import ml_collections

from configs import finetune_cell_types


def get_config() -> ml_collections.ConfigDict:
    """8,000 cells to train on and 2,000 to classify genes in."""
    config = finetune_cell_types.get_config()
    config.data.cell_type = ""
    config.finetune.task = "genes"
    config.finetune.pooling = "none"
    config.finetune.gene_classes = "dosage_sens_tf_labels.csv"
    config.finetune.frozen_layers = 4
    config.finetune.epochs = 1.0
    config.finetune.cells = 10_000
    return config
