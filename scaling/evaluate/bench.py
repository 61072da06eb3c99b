"""An encoder and cells -> cells embedded, and perturbed, in a second; batch scores of a second.

Each way runs in a fresh process, in turns with the other; only ratios count. The public BERT is
`transformers.BertModel` as it ships, on batches of cells sorted by length.
"""

import functools
import importlib.metadata
import os
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from scaling.corpus import alone, subsets
from scaling.corpus import bench as measures
from scaling.corpus.encodings import Cells
from scaling.corpus.shards import Corpus
from scaling.corpus.tokens import PAD

CELLS = 256  # embedded in a turn
BERT_TOKENS = 4_096  # of a batch of the public BERT, at most
LAYER = -2  # whose states are averaged
WIDTH, TYPES, BATCHES = 256, 10, 6  # of the cells whose batch mixing is scored
MINUTES = 3  # that 20,000 of them may take
DELETED = 32  # genes of a cell, deleted in turn


def rows(
    title: str,
    model: dict,
    vocabulary: int,
    corpus_of: Callable[[], Corpus],
    rounds: int,
    sizes: list[int],
) -> dict[str, Callable[[], dict]]:
    """What is measured of evaluation, by title; measured when it is called.

    Args:
      title: names the model.
      model: the fields of `ModelSettings`.
      vocabulary: V, of cells that are made up.
      corpus_of: makes the corpus of the cells.
      rounds: how often each way is timed.
      sizes: cells whose batch mixing is scored.
    """
    return {
        f"embedding: {title}": functools.partial(embedding, model, corpus_of, rounds),
        f"deleting genes: {title}": functools.partial(deleting, model, vocabulary),
        f"batch mixing: {WIDTH} dimensions": functools.partial(mixing, sizes),
    }


def deleting(model: dict, vocabulary: int) -> dict:
    """Deletions of a gene from a full cell in a second, each with its shift of the embedding."""
    seconds, peak = alone.run_watched(deleting_seconds, model, vocabulary)
    way = f"{DELETED} genes of a cell of {model['length']:,}"
    found = {"rates": {way: DELETED / seconds}, "seconds": {way: seconds}}
    return {"unit": "deletions/s", **found, "memory": {way: peak["largest"]}}


def deleting_seconds(model: dict, vocabulary: int) -> float:
    """Seconds of the shifts of one cell by some of its genes, the programs being compiled."""
    from scaling.evaluate import in_silico
    from scaling.pretrain import step
    from scaling.pretrain.model import ModelSettings

    settings = ModelSettings(**model)
    params = step.initial_params(0, settings, vocabulary)
    genes = np.random.default_rng(0).permutation(np.arange(2, vocabulary))[: settings.length]
    cell = Cells(genes[None].astype(np.int32))

    def run():
        return in_silico.shifts(params, settings, LAYER, cell, 2, genes[:DELETED].tolist())

    run()
    return _seconds(run)


def mixing(sizes: list[int]) -> dict:
    """Cells in a second and memory of every batch score, each size in a fresh process."""
    rates, seconds, memory = {}, {}, {}
    for count in tqdm(sizes, desc="batch mixing", unit="size", leave=False):
        way = f"{count:,} cells"
        seconds[way], peak = alone.run_watched(mixing_seconds, count)
        rates[way], memory[way] = count / seconds[way], peak["largest"]
    goal = {"goal": 20_000 / (60 * MINUTES)}
    return {"unit": "cells/s", "rates": rates, "seconds": seconds, "memory": memory} | goal


def mixing_seconds(cells: int) -> float:
    """Seconds of the batch scores of random cells that lie by type and, less so, by batch."""
    from scaling.evaluate import batch_mixing

    rng = np.random.default_rng(0)
    types, batches = rng.integers(TYPES, size=cells), rng.integers(BATCHES, size=cells)
    x_NxD = rng.normal(size=(cells, WIDTH)).astype(np.float32)
    x_NxD += rng.normal(size=(TYPES, WIDTH)).astype(np.float32)[types]
    before_NxD = x_NxD + rng.normal(size=(BATCHES, WIDTH)).astype(np.float32)[batches]
    names = types.astype(str), batches.astype(str)
    return _seconds(lambda: batch_mixing.integration(x_NxD, *names, before_NxD, seed=0))


def embedding(model: dict, corpus_of: Callable[[], Corpus], rounds: int) -> dict:
    """Cells of mixed length embedded by both ways."""
    if left_out := measures.missing("torch", "transformers"):
        return left_out
    corpus = corpus_of()
    ids = corpus.obs["cell_id"].to_numpy()
    chosen = np.sort(subsets.order(ids, 0)[:CELLS])
    lengths = corpus.lengths(chosen).clip(max=model["length"])
    path = corpus.folder.with_name("embedded.npy")
    np.save(path, corpus.tokens(chosen, model["length"]))
    taken, memory = {"ours": [], "plain": []}, {"ours": 0, "plain": 0}
    arguments = model, len(corpus.vocabulary), len(corpus.vocabulary.special), str(path)
    for _ in tqdm(range(rounds), desc="embedding", unit="round", leave=False):
        for way, function in {"ours": our_seconds, "plain": bert_seconds}.items():
            seconds, peak = alone.run_watched(function, *arguments)
            taken[way].append(seconds)
            memory[way] = max(memory[way], peak["largest"])
    path.unlink()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    more = {"memory": memory, "mean_length": float(lengths.mean()), "versions": versions}
    return measures.row("embedding", "cells/s", len(chosen), taken, **more)


def our_seconds(model: dict, vocabulary: int, special: int, path: str) -> float:
    """Seconds to embed the cells of a file of tokens, the programs being compiled."""
    from scaling.evaluate import embed
    from scaling.pretrain import step
    from scaling.pretrain.model import ModelSettings

    settings, cells = ModelSettings(**model), Cells(np.load(path))
    params = step.initial_params(0, settings, vocabulary)

    def run():
        return embed.embed_cells(params, settings, LAYER, [cells], special)

    run()
    return _seconds(run)


def bert_seconds(model: dict, vocabulary: int, special: int, path: str) -> float:
    """Seconds of the public BERT for the same."""
    import torch

    from scaling.pretrain import whole_steps

    torch.set_num_threads(os.cpu_count())
    bert, tokens = whole_steps.bert(model, vocabulary).eval(), np.load(path)

    def run():
        return bert_embeddings(bert.bert, tokens, special)

    run()
    return _seconds(run)


def bert_embeddings(bert, tokens_NxL: np.ndarray, special: int) -> np.ndarray:
    """What `embed.embed_cells` gives, by a `transformers.BertModel` that does not train."""
    import torch

    length_N = (tokens_NxL != PAD).sum(1)
    order, start = np.argsort(-length_N, kind="stable"), 0
    found = np.empty((len(order), bert.config.hidden_size), np.float32)
    while start < len(order):
        longest = length_N[order[start]]
        rows = order[start : (start := start + max(1, BERT_TOKENS // longest))]
        inputs = torch.from_numpy(tokens_NxL[rows, :longest].astype(np.int64))
        with torch.inference_mode():
            mask = (inputs != PAD).long()
            out = bert(inputs, attention_mask=mask, output_hidden_states=True)
            gene = (inputs >= special)[..., None]
            found[rows] = (out.hidden_states[LAYER] * gene).sum(1) / gene.sum(1)
    return found


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
