"""Cell types of one organ, fine-tuned by Geneformer's recipe; other fine-tunings start from here.

Command: python -m experiments.finetune --config=configs/finetune_cell_types.py --checkpoint=RUN \\
  --workdir=DIR --config.data.h5ad=FILE --config.data.cell_type=COLUMN
Published (Theodoris et al. 2023): learning rate 5e-5, linear decay after 500 steps of warm-up,
weight decay 0.001, batch 12, 10 epochs, no frozen layer, types under 0.5 % dropped, 80 % of the
cells to train on. The published pooling is `first`, and the best of the epochs on the test cells
was kept; ours is the last. Result: not run yet.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Fine-tuning of all layers; the encoder's settings are the run's, not those of `model`."""
    config = default.get_config()
    with config.unlocked():
        config.finetune = finetune = ml_collections.ConfigDict()
        finetune.task = "cells"  # classified by data.cell_type; or genes, by finetune.gene_classes
        finetune.start = "pretrained"  # the run's weights; or untrained: drawn anew, from the seed
        finetune.pooling = "mean"  # over genes' positions; first: as BERT; of genes: none
        finetune.dropout = 0.02  # of what the logits are read from
        finetune.frozen_layers = 0  # the first of them: no gradient, no decay
        finetune.frozen_embedding = False  # of genes and positions, and its norm
        finetune.learning_rate = 5e-5  # peak
        finetune.warmup = 500.0  # steps from 2 on, or a share of them
        finetune.decay_power = 1.0  # of the polynomial decay after it; 1 is linear
        finetune.end_rate = 0.0  # learning rate that the decay ends at
        finetune.weight_decay = 0.001  # AdamW's, of matrices
        finetune.clip = 1.0  # norm that gradients are cut to
        finetune.batch = 12  # cells
        finetune.epochs = 10.0  # passes over the training cells
        finetune.buckets = 8  # lengths to pad to, at most, each a program to compile
        finetune.split = "cell"  # what goes to one side whole: cell, or donor
        finetune.test_share = 0.2  # of the cells
        finetune.min_share = 0.005  # of the cells that a class must have
        finetune.cells = 0  # to use at most, chosen by hash; 0: all
        finetune.gene_classes = ""  # CSV with a column of gene ids for each class
        finetune.folds = 5  # of genes
        finetune.seed = 0  # of the split, the head, dropout and the order of cells
    return config
