"""Geneformer V2-104M: 85.05M parameters in 12 layers, 104.39M in all; masked-gene prediction.

Command: python -m experiments.pretrain --config=configs/gf_v2_104m.py --workdir=runs/gf-v2-104m \\
  --config.data.h5ad=GLOB --config.data.vocabulary=geneformer_v2
where the folder has V2's token, median and Ensembl dictionaries.
Published: the encoder. Not V2's: the recipe, which is that of V1. Result: not run yet.
"""

import ml_collections

from configs import gf_v1_10m


def get_config() -> ml_collections.ConfigDict:
    """V2's encoder under V1's recipe."""
    config = gf_v1_10m.get_config()
    config.model.layers = 12
    config.model.width = 768
    config.model.heads = 12
    config.model.feed_forward = 3072
    config.model.length = 4096
    config.model.dropout = config.model.attention_dropout = 0.1
    return config
