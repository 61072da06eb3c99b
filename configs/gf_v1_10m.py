"""Geneformer V1: 10.29M parameters, 3.16M of them in the layers; plain masked-gene prediction.

Command: python -m experiments.pretrain --config=configs/gf_v1_10m.py --workdir=runs/gf-v1 \\
  --config.data.h5ad=GLOB --config.data.vocabulary=geneformer_v1
where the folder has V1's token and median dictionaries.
Published (Theodoris et al. 2023): the encoder, learning rate 1e-3 with linear decay, 10,000 steps
of warm-up, weight decay 0.001, 3 epochs. Ours: 96 cells to a batch, within the published 8-12 on
each of 8-12 GPUs; gradients cut to norm 1. Result: not run yet.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The default encoder and recipe, with the published warm-up and objective."""
    config = default.get_config()
    config.objective.name = "mlm"
    config.train.warmup = 10_000
    return config
