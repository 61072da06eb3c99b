"""Cells on disk -> seconds of one pass in masked batches: a corpus, and a data set fed plainly.

The plain way is that of a masked language model's collator: cells come as lists of int from a
Hugging Face data set, worker processes of torch pad them to the batch's longest, and mask.
"""

import functools
import pathlib
import time

import numpy as np

from scaling.corpus.tokens import MASK, PAD


def seconds(
    corpus: str, length: int, buckets: int, batch: int, steps: int, masks: dict, passes: int
) -> list[float]:
    """Seconds of each pass over a corpus, to batches on JAX's devices as a training run gets them.

    A first pass is made before time is taken.

    Args:
      corpus: its folder.
      length: tokens that cells are cut to.
      buckets: lengths to pad to, at most.
      batch: cells of a batch.
      steps: batches of a pass.
      masks: the fields of `MaskingSettings`.
      passes: that are timed.
    """
    import jax

    from scaling.corpus.shards import Corpus
    from scaling.pretrain import batches, masking, sharding
    from scaling.pretrain.plan import Plan, padded_lengths

    opened = Corpus.open(pathlib.Path(corpus))
    lengths, settings = opened.obs["length"].to_numpy(), masking.MaskingSettings(**masks)
    padded = padded_lengths(lengths, length, buckets)
    of_cell = np.searchsorted(padded, lengths.clip(max=padded[-1])).astype(np.uint16)
    plan, total = Plan(len(lengths), batch, 0, of_cell), steps * (passes + 1)
    rows = np.arange(len(lengths))
    iterator = batches.iterate(
        batches.Batches(opened, rows, plan, total, padded, settings, seed=0)
    )
    mesh, taken = sharding.make_mesh(sharding.DeviceSettings(), batch), []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for _ in range(steps):
            last = sharding.shard_batch(next(iterator), mesh)
        jax.block_until_ready(last)
        taken.append(time.perf_counter() - start)
    return taken[1:]


def plain_seconds(
    cells: str, batch: int, workers: int, vocabulary: int, masks: dict, passes: int
) -> list[float]:
    """Seconds of each pass over a data set of `plain.py`; needs `datasets` and `torch`.

    Args:
      cells: folder of the data set.
      batch: cells of a batch; the last cells, too few for one, are left out.
      workers: processes that read, pad and mask.
      vocabulary: number of tokens.
      masks: the fields of `MaskingSettings`.
      passes: that are timed, after a first, which starts the workers.
    """
    import datasets
    from torch.utils.data import DataLoader

    collate = functools.partial(_collate, vocabulary, masks)
    tokens = datasets.load_from_disk(cells).select_columns("input_ids")
    options = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    loader = DataLoader(tokens, batch, num_workers=workers, collate_fn=collate, **options)
    taken = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for _ in loader:
            pass
        taken.append(time.perf_counter() - start)
    return taken[1:]


def _collate(vocabulary: int, masks: dict, cells: list[dict]) -> dict:
    """Lists of int -> input_ids, attention_mask and labels (-100 where nothing is predicted)."""
    import torch

    tokens = [torch.tensor(cell["input_ids"]) for cell in cells]
    inputs = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=PAD)
    labels, real = inputs.clone(), inputs != PAD
    chosen = torch.bernoulli(torch.full(inputs.shape, masks["rate"])).bool() & real
    labels[~chosen] = -100
    treatment = torch.rand(inputs.shape)
    hidden = chosen & (treatment < masks["mask_share"])
    drawn = chosen & ~hidden & (treatment < masks["mask_share"] + masks["random_share"])
    inputs[hidden] = MASK
    inputs[drawn] = torch.randint(vocabulary, inputs.shape)[drawn]
    return {"input_ids": inputs, "attention_mask": real.long(), "labels": labels}
