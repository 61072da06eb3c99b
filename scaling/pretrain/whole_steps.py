"""Settings -> whole training steps timed: ours beside the public BERT's, real input beside none.

Each way runs in a fresh process or takes turns with the other, in the same minutes; only ratios
count. The public BERT is `transformers.BertForMaskedLM` as it ships, which computes the logits of
all positions, trained by torch's AdamW.
"""

import dataclasses
import functools
import importlib.metadata
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from scaling.corpus import alone
from scaling.corpus import bench as measures
from scaling.corpus.tokens import PAD, SPECIAL
from scaling.pretrain import feeding

STEPS = 2  # timed in each fresh process, after a first


def rows(
    models: dict, vocabulary: int, cells: int, corpus_of: Callable, folder: pathlib.Path,
    rounds: int,
) -> dict[str, Callable[[], dict]]:
    """All that is measured of whole steps, by title; each is measured when it is called.

    Args:
      models: `Settings` by name; the first is compared with the public BERT.
      vocabulary: V of the first.
      cells: of a batch.
      corpus_of: makes the `Corpus` of `Settings` in a folder.
      folder: gets the corpora.
      rounds: how often each way is timed.
    """
    runs = {name: dataclasses.asdict(of.run) for name, of in models.items()}
    name, run = next(iter(runs.items()))
    beside = functools.partial(against_bert, run, vocabulary, cells, rounds)
    fed = {
        f"input: {name}, {cells} cells": functools.partial(
            with_input, functools.partial(corpus_of, of, folder / name), runs[name], cells, rounds
        )
        for name, of in models.items()
    }
    return {f"model: mlm of {name}, {cells} cells": beside, **fed}


def against_bert(settings: dict, vocabulary: int, cells: int, rounds: int) -> dict:
    """One step of the masked language model, ours and the public BERT's, on CPU.

    Args:
      settings: the fields of `RunSettings`; float32.
      vocabulary: V.
      cells: of a batch, all of full length.
      rounds: how often each way gets a fresh process.
    """
    import jax

    if left_out := measures.missing("torch", "transformers"):
        return left_out
    if jax.default_backend() != "cpu":
        return {"left_out": "both are compared on CPU: set JAX_PLATFORMS=cpu"}
    taken, memory = {"ours": [], "plain": []}, {"ours": 0, "plain": 0}
    ways = {"ours": our_seconds, "plain": bert_seconds}
    for _ in tqdm(range(rounds), desc="mlm", unit="round", leave=False):
        for way, function in ways.items():
            seconds, peak = alone.run_watched(function, settings, vocabulary, cells, STEPS)
            taken[way] += seconds
            memory[way] = max(memory[way], peak["largest"])
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    more = {"memory": memory, "batch": cells, "versions": versions}
    return measures.row("mlm", "cells/s", cells, taken, **more)


def our_seconds(settings: dict, vocabulary: int, cells: int, steps: int) -> list[float]:
    """Seconds of each step with the objective "mlm", after a first; see `against_bert`."""
    import jax

    from scaling.pretrain import bench
    from scaling.pretrain.step import RunSettings

    program = bench.steps(RunSettings.from_config(settings), vocabulary, cells)["mlm"]()
    return _timed(lambda: jax.block_until_ready(program.run()), steps)


def bert_seconds(settings: dict, vocabulary: int, cells: int, steps: int) -> list[float]:
    """Seconds of each step of BERT on cells masked by its collator; see `against_bert`."""
    import torch

    torch.set_num_threads(os.cpu_count())
    model, train = bert(settings["model"], vocabulary), settings["train"]
    adamw = torch.optim.AdamW(
        model.parameters(), train["learning_rate"], weight_decay=train["weight_decay"]
    )
    tokens = full_cells(vocabulary, settings["model"]["length"], cells)
    listed = [{"input_ids": cell.tolist()} for cell in tokens]
    batch = feeding.collate(vocabulary, settings["masking"], listed)

    def step():
        adamw.zero_grad()
        model(**batch).loss.backward()
        adamw.step()

    return _timed(step, steps)


def bert(model: dict, vocabulary: int):
    """The public BERT of the given fields of `ModelSettings`, weights drawn, ready to be trained.

    Returns:
      A `transformers.BertForMaskedLM`.
    """
    import transformers

    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=model["width"],
        num_hidden_layers=model["layers"],
        num_attention_heads=model["heads"],
        intermediate_size=model["feed_forward"],
        max_position_embeddings=model["length"],
        hidden_act=model["activation"],
        hidden_dropout_prob=model["dropout"],
        attention_probs_dropout_prob=model["attention_dropout"],
        layer_norm_eps=model["norm_epsilon"],
        type_vocab_size=1,
        pad_token_id=PAD,
    )
    return transformers.BertForMaskedLM(config).train()


def full_cells(vocabulary: int, length: int, cells: int) -> np.ndarray:
    """Random cells of full length, int32 [cells, length]: genes in any order, none twice."""
    rng, genes = np.random.default_rng(0), np.arange(len(SPECIAL), vocabulary, dtype=np.int32)
    return np.stack([rng.permutation(genes)[:length] for _ in range(cells)])


def with_input(corpus: Callable, settings: dict, cells: int, rounds: int) -> dict:
    """Training steps whose batches come from a corpus, and on one batch that stays.

    Args:
      corpus: gives a `Corpus`.
      settings: the fields of `RunSettings`.
      cells: of a batch.
      rounds: turns of each way.
    """
    settings = {**settings, "objective": settings["objective"] | {"name": "mlm"}}  # the quickest
    folder = str(corpus().folder)
    taken, steps = alone.run(feeding.step_seconds, folder, settings, cells, rounds)
    more = {"batch": cells, "steps": steps, "batches/s": steps / min(taken.pop("input"))}
    return measures.row("input", "steps/s", steps, taken, **more)


def _timed(step, steps: int) -> list[float]:
    taken = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return taken[1:]
