"""Geneformer V2-316M: 286.92M parameters in 18 layers, 316.35M in all; masked-gene prediction.

Command: python -m experiments.pretrain --config=configs/gf_v2_316m.py --workdir=runs/gf-v2-316m \\
  --config.data.h5ad=GLOB --config.data.vocabulary=geneformer_v2
where the folder has V2's token, median and Ensembl dictionaries.
Published: the encoder. Not V2's: the recipe, which is that of V1. Result: not run yet.
"""

import ml_collections

from configs import gf_v1_10m


def get_config() -> ml_collections.ConfigDict:
    """V2's encoder under V1's recipe."""
    config = gf_v1_10m.get_config()
    config.model.layers = 18
    config.model.width = 1152
    config.model.heads = 18
    config.model.feed_forward = 4608
    config.model.length = 4096
    config.model.dropout = config.model.attention_dropout = 0.1
    return config
