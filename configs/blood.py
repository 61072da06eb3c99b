"""Does more data help, on real human blood cells? Trained on some studies, scored on others.

Command: python -m experiments.study --config=configs/blood.py --config.data.h5ad=GLOB \\
  --config.data.score_on=GLOB --config.data.gene_names=TABLE.csv --workdir=runs/blood
Result: experiments/blood/README.md (2 shared CPU cores, about half an hour).
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """A two-layer encoder that 2 CPU cores train, equal steps at every size."""
    config = default.get_config()
    config.data.min_cells = 1_000  # some 3,000 genes: as many as minutes on a CPU can teach
    with config.unlocked():  # half of the other cells are doublets
        config.data.keep.mixology_5_lines = {"demuxlet": "SNG"}
        config.evaluate.stimulus.kang_ifnb_2800 = ("CTRL", "STIM")
    config.model.layers = 2
    config.model.width = 64
    config.model.heads = 2
    config.model.feed_forward = 128
    config.model.length = 256
    config.model.dropout = config.model.attention_dropout = 0.0
    config.train.steps = 1_000
    config.train.epochs = 0.0
    config.train.batch = 8
    config.train.learning_rate = 2e-3
    config.train.checkpoint_every = 500
    config.evaluate.cells = 1_000
    config.evaluate.no_batch_mixing = ("kang_ifnb_2800",)  # its batches are the stimulus
    config.study.sizes = (100, 450, 1_900, 8_000)
    return config
