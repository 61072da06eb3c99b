"""Weights or training cells, and held-out cells -> rows of scores, a model's and the baselines'."""

import dataclasses
import json
import pathlib

import numpy as np

from scaling.corpus.shards import Corpus
from scaling.evaluate import representations, scores, seen
from scaling.evaluate.held_out import HeldOut
from scaling.evaluate.intervals import joined
from scaling.pretrain import loop, step
from scaling.pretrain.masking import MaskingSettings
from scaling.pretrain.model import ModelSettings
from scaling.sweeps import manifest


def evaluate_run(
    given: pathlib.Path, run: step.RunSettings, held_out: list[HeldOut],
    pictures: pathlib.Path | None = None, masking: MaskingSettings | None = None,
) -> list[dict]:
    """Scores of a trained run's last checkpoint, or of one that is named.

    Args:
      given: RUN or RUN/checkpoints/STEP.
      run: what it was trained with.
      held_out: cells to score.
      pictures: folder that gets them; None draws none.
      masking: of the scored cells; None is the run's own.

    Returns:
      Rows; `note` says of cells of another corpus than the run's how many it was trained on, or
      that it is not known.

    Raises:
      ValueError: no run, one of other model or masking settings, or one that was trained with
        another vocabulary than the cells' corpus.
    """
    folder, at = loop.run_and_step(given)
    held = json.loads((folder / loop.SETTINGS).read_text())
    for part in ("model", "masking"):
        asked = json.loads(json.dumps(dataclasses.asdict(getattr(run, part))))
        if held[part] != asked:
            raise ValueError(
                f"{folder} was trained with {part} {held[part]}, the config has {asked}; give the "
                "config it was trained with"
            )
    trained = held["vocabulary"]
    for data in held_out:
        if trained != (found := data.corpus.vocabulary.hash):
            raise ValueError(
                f"{folder} was trained with vocabulary {trained}, {data.corpus.folder} has "
                f"{found}; build a corpus in the run's, in another folder: give another --workdir "
                f"and --config.data.vocabulary={folder}/vocabulary.json"
            )
    corpus = held_out[0].corpus
    params = loop.load_params(folder, run.model, len(corpus.vocabulary), at)
    rows = loop.rows_trained_on(folder, corpus)
    labels = None if rows is None else corpus.obs["cell_type"].to_numpy(str)[rows]
    mask = (masking or run.masking).of_scores()
    found = score_params(params, run.model, mask, held_out, pictures, "model", labels)
    return found if rows is not None else _noted(found, seen.of_run(folder, corpus), held_out)


def _noted(rows: list[dict], known: seen.Seen, held_out: list[HeldOut]) -> list[dict]:
    told = {data.name: known.note(data.rows, "scored") for data in held_out}
    return [row | {"note": joined(row["note"], told[row["dataset"]])} for row in rows]


def score_params(
    params: dict,
    model: ModelSettings,
    mask: MaskingSettings,
    held_out: list[HeldOut],
    pictures: pathlib.Path | None = None,
    name: str = "",
    training_labels: np.ndarray | None = None,
) -> list[dict]:
    """Scores of weights at all tasks; see `evaluate_run` and `scores.rows_of_representation`."""
    found = []
    told = {"training_labels": training_labels, "pictures": pictures, "name": name}
    for data in held_out:
        found += scores.rows_of_model(params, model, mask, data)
        of = representations.of_model(params, model, data.settings, data.corpus)
        found += scores.rows_of_representation(of, data, **told)
    return found


def baseline_rows(
    corpus: Corpus, rows: np.ndarray, held_out: list[HeldOut], pictures: pathlib.Path | None = None
) -> dict[str, list[dict]]:
    """Scores by baseline, fitted on the cells that a model of that size was trained on."""
    names = held_out[0].settings.baselines
    fitted = representations.fit_baselines(corpus, rows, names)
    return {
        name: [
            row
            for data in held_out
            if data.counts is not None
            for row in scores.rows_of_representation(of, data, pictures=pictures, name=name)
        ]
        for name, of in fitted.items()
    }


def unfitted_rows(held_out: list[HeldOut]) -> dict[str, list[dict]]:
    """Scores by baseline, of those that see no training cell: they take the probes' own."""
    found = {}
    for data in held_out:
        classified = scores.rows_of_classifiers(data.settings.baselines, data)
        for name, rows in (classified | scores.rows_of_responses(data)).items():
            found.setdefault(name, []).extend(rows)
    return found


def write_lines(path: pathlib.Path, rows) -> None:
    """Rows as JSONL, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
