"""The published GF-1M and GF-CAB-1M: the draw of 1M cells from Genecorpus-30M, and their recipe.

Command: python -m experiments.study --config=configs/genecorpus_1m.py --workdir=runs/gf-1m \\
  --config.data.h5ad=genecorpus_30M_2048.dataset --config.data.vocabulary=geneformer_v1
where the data set is that of Genecorpus-30M, and the folder has V1's token and median dictionaries.
The draw: shuffled with seed 42, the first 1.2M cells, of which the last 200K are held out. Drawn
cells that equal a held-out one are kept from training, which the original does not look for.
Result: not run yet.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Geneformer V1 on one draw, with each objective as the training script has it."""
    config = default.get_config()
    config.data.h5ad = "genecorpus_30M_2048.dataset"
    config.data.vocabulary = "geneformer_v1"
    config.data.cell_type = ""
    config.data.draw = 1_200_000
    config.data.split_seed = 42
    config.data.held_out = 1 / 6
    config.data.cells_per_shard = 50_000
    config.objective.denominator = "published"
    config.objective.weight = 1.0
    config.train.warmup = 10_000
    config.evaluate.cells = 50_000
    config.study.sizes = (1.0,)
    return config
