"""A trained run, a corpus with labels -> a folder of predictions, and rows of scores."""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import pandas as pd

from scaling import provenance
from scaling.corpus.shards import VOCABULARY, Corpus
from scaling.evaluate import classifier, seen, tuned_cells, tuned_genes
from scaling.evaluate.tuned_cells import Predictions, finetune_cells
from scaling.evaluate.tuned_genes import GenePredictions, finetune_genes
from scaling.evaluate.tuning import FinetuneSettings
from scaling.pretrain import loop, step
from scaling.pretrain.model import ModelSettings

SETTINGS, SCORES, PREDICTIONS = "settings.json", "scores.jsonl", "predictions.parquet"

__all__ = [
    "FinetuneSettings", "GenePredictions", "Predictions", "finetune", "finetune_cells",
    "finetune_genes", "not_kept", "vocabulary_of",
]


def finetune(
    settings: FinetuneSettings, run: pathlib.Path, corpus: Corpus, folder: pathlib.Path
) -> list[dict]:
    """Fine-tunes a run's encoder, or reads what this call found before.

    Args:
      settings: of the fine-tuning.
      run: folder of a trained run, or one of its checkpoints/STEP.
      corpus: with labels, built with the run's vocabulary.
      folder: gets settings.json, scores.jsonl, predictions.parquet, of genes fold-<k>.npz, and
        the classifiers: `classifier` or fold-<k>, where `not_kept` has nothing against it.

    Returns:
      One row a score: task, dataset, dataset_hash, the fields of a `Score`, seed, start, model
      (the run's hash), finetune (hash of all that the scores depend on), commit, packages. `note`
      says how many test cells the run was pretrained on, or that it is not known.

    Raises:
      ValueError: no run, one of another vocabulary, one that was pretrained on annotations and may
        have been on those of all test cells, a folder of another fine-tuning, or bad data.
    """
    run, at = loop.run_and_step(run)
    held = json.loads((run / loop.SETTINGS).read_text())
    if held["vocabulary"] != corpus.vocabulary.hash:
        raise ValueError(
            f"{run} was trained with vocabulary {held['vocabulary']}, {corpus.folder} has "
            f"{corpus.vocabulary.hash}; build the corpus with data.vocabulary={vocabulary_of(run)}"
        )
    cells = hashlib.sha256(json.dumps(corpus.manifest["checksums"]).encode()).hexdigest()[:12]
    content = {"finetune": dataclasses.asdict(settings), "run": held["hash"], "cells": cells}
    content["step"] = at
    name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
    _claim(folder, content | {"hash": name})
    if (folder / SCORES).exists():
        return [json.loads(line) for line in (folder / SCORES).read_text().splitlines()]
    model = ModelSettings(**held["model"])
    if settings.start == "untrained":
        encoder = step.initial_params(settings.seed, model, len(corpus.vocabulary))
        known = seen.Seen(np.zeros(len(corpus.obs), bool))
    else:
        encoder = loop.load_params(run, model, len(corpus.vocabulary), at)
        known = seen.of_run(run, corpus)
    if settings.task == "cells":
        found = finetune_cells(encoder, model, corpus, settings, seen=known)
        module = tuned_cells.head(model, corpus, settings, len(found.classes))
        kept = corpus.vocabulary, folder / "classifier"
        classifier.export(found.params, module, found.classes, *kept)
        scored, table = tuned_cells.scores(found, settings.seed), _table(found)
    else:
        given = encoder, model, corpus, settings
        found = finetune_genes(*given, seen=known, folder=folder)
        scored, table = tuned_genes.scores(found, settings.seed), _gene_table(found)
    about = {
        "task": f"finetuned_{settings.task}",
        "dataset": "+".join(sorted(set(corpus.obs["dataset"]))),
        "dataset_hash": cells,
        "seed": settings.seed,
        "start": settings.start,
        "model": held["hash"],
        "finetune": name,
        "commit": provenance.commit(),
        "packages": provenance.packages(),
    }
    rows = [about | score.row() for score in scored]
    _write(folder / PREDICTIONS, lambda partial: table.to_parquet(partial, index=False))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    _write(folder / SCORES, lambda partial: partial.write_text(lines))
    return rows


def not_kept(settings: FinetuneSettings, run: pathlib.Path) -> str:
    """Why a fine-tuning of a run keeps no classifier; "" where it does.

    Raises:
      ValueError: the folder holds no run.
    """
    held = json.loads((loop.run_and_step(run)[0] / loop.SETTINGS).read_text())
    return classifier.not_written(settings.pooling, ModelSettings(**held["model"]))


def vocabulary_of(run: pathlib.Path) -> pathlib.Path:
    """The vocabulary that a run was trained with.

    Raises:
      ValueError: the folder holds no run.
    """
    return loop.run_and_step(run)[0] / VOCABULARY


def _claim(folder: pathlib.Path, content: dict) -> None:
    path = folder / SETTINGS
    if path.exists():
        held = json.loads(path.read_text())
        if held["hash"] == content["hash"]:
            return
        if any(part.name != SETTINGS for part in folder.iterdir()):  # else nothing was found yet
            raise ValueError(
                f"{folder} holds a fine-tuning of other settings, another run or other cells (hash "
                f"{held['hash']}, now {content['hash']}); give another --workdir or remove it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, lambda partial: partial.write_text(json.dumps(content, indent=1)))


def _table(found: Predictions) -> pd.DataFrame:
    table = pd.DataFrame({"cell_id": found.cells, "true": found.true, "donor": found.donors})
    table["predicted"] = found.predicted
    shares = {f"p({name})": found.probabilities[:, k] for k, name in enumerate(found.classes)}
    return table.assign(**shares)


def _gene_table(found: GenePredictions) -> pd.DataFrame:
    names = [found.classes[number] for number in found.true]
    table = pd.DataFrame({"gene_id": found.genes, "true": names, "fold": found.fold + 1})
    table["occurrences"] = [len(of_gene) for of_gene in found.logits]
    shares = {f"logit({n})": found.mean_logits[:, k] for k, n in enumerate(found.classes)}
    return table.assign(**shares)


def _write(path: pathlib.Path, write) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.rename(path)
