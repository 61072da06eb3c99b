"""Cells on disk -> seconds of one pass in masked batches: a corpus, and a data set fed plainly.

The plain way is that of a masked language model's collator: cells come as lists of int from a
Hugging Face data set, worker processes of torch pad them to the batch's longest, and mask.
"""

import functools
import pathlib
import time

import numpy as np

from scaling.corpus.tokens import MASK, PAD

TURN = 8  # seconds of a turn of steps, and steps, at least
MANY = 10**6  # steps of the run that they belong to


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
    from scaling.pretrain import batches, masking, sharding, step
    from scaling.pretrain.plan import Plan, padded_lengths

    opened = Corpus.open(pathlib.Path(corpus))
    lengths = opened.obs["length"].to_numpy()
    settings = masking.MaskingSettings(**step.hashable(masks))
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


def step_seconds(corpus: str, settings: dict, batch: int, rounds: int) -> tuple[dict, int]:
    """Seconds of each turn and its steps; see `whole_steps.with_input`.

    A turn with real input begins with an empty buffer, so that no batch is ready before its time,
    and ends with a full one: its reader has done more than the steps needed.

    Returns:
      "ours": with batches from the corpus; "plain": with one that stays; "input": the batches
      without a step. And the steps of a turn.
    """
    import jax

    from scaling.corpus.shards import Corpus
    from scaling.pretrain import batches, sharding, step
    from scaling.pretrain.plan import Plan

    run, opened = step.RunSettings.from_config(settings), Corpus.open(pathlib.Path(corpus))
    program, genes = run.program(), len(opened.vocabulary)
    rows = np.flatnonzero(opened.obs["split"] == "pool")
    mesh = sharding.make_mesh(sharding.DeviceSettings(), batch)
    many = batches.Batches(
        opened, rows, Plan(len(rows), batch, 0), MANY, (run.model.length,), run.masking, 0
    )

    def train(fetch, steps: int) -> float:
        nonlocal state
        logged, start = None, time.perf_counter()
        for _ in range(steps):
            before, cells = logged, fetch()
            state, logged = step.train_step(state, cells, np.uint32(0), program, MANY)
            if before is not None:  # as a run does, which reads the step before
                float(before["loss"])
        jax.block_until_ready((state, logged))
        return time.perf_counter() - start

    def fetch_alone(fetch, steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            last = fetch()
        jax.block_until_ready(last)
        return time.perf_counter() - start

    def read(consume, steps: int) -> float:
        iterator = batches.iterate(many)
        next(iterator)  # starts its threads
        seconds = consume(lambda: sharding.shard_batch(next(iterator), mesh), steps)
        iterator.close()
        return seconds

    with jax.set_mesh(mesh):
        state = step.initial_state(np.uint32(0), program, MANY, genes)
        constant = sharding.shard_batch(many[0], mesh)
        train(lambda: constant, 1)
        steps = max(TURN, int(TURN / train(lambda: constant, 1)))
        taken = {"ours": [], "plain": [], "input": []}
        for _ in range(rounds):
            taken["plain"].append(train(lambda: constant, steps))
            taken["ours"].append(read(train, steps))
            taken["input"].append(read(fetch_alone, steps))
    return taken, steps


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

    masked = functools.partial(collate, vocabulary, masks)
    tokens = datasets.load_from_disk(cells).select_columns("input_ids")
    options = {"shuffle": True, "drop_last": True, "persistent_workers": True}
    loader = DataLoader(tokens, batch, num_workers=workers, collate_fn=masked, **options)
    taken = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        for _ in loader:
            pass
        taken.append(time.perf_counter() - start)
    return taken[1:]


def collate(vocabulary: int, masks: dict, cells: list[dict]) -> dict:
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
