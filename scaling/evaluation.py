"""A checkpoint, a corpus -> the scores of its held-out cells beside the baselines', one folder."""

import dataclasses
import pathlib

import numpy as np
import pandas as pd

from scaling import prepare, provenance, scoring
from scaling.evaluate import noise, scores
from scaling.evaluate.held_out import all_held_out
from scaling.evaluate.intervals import Score
from scaling.pretrain import loop, step
from scaling.settings import Settings

HEADLINE = (
    "accuracy", "loss", "knn_accuracy", "knn_macro_f1", "logistic_accuracy", "logistic_macro_f1",
    "macro_f1", "avg_bio", "average_batch_score", "ilisi", "kbet", "graph_connectivity",
    "pearson", "r2",
)  # fmt: skip


def asking_for(
    settings: Settings, tasks: list[str] | None, baselines: list[str] | None
) -> Settings:
    """The settings with other tasks and baselines, where any are given."""
    asked = {"tasks": tasks, "baselines": baselines}
    asked = {name: tuple(of) for name, of in asked.items() if of is not None}
    return dataclasses.replace(settings, evaluate=dataclasses.replace(settings.evaluate, **asked))


def evaluate(
    settings: Settings, checkpoint: pathlib.Path, workdir: pathlib.Path, built: str | None
) -> str:
    """Scores a trained run, the untrained model, floors, and baselines.

    Baselines and the most frequent gene are fitted on the run's training cells, or, where the
    corpus is another than the run's, on all of its training cells.

    Args:
      settings: of the run; `settings.evaluate` says what is scored.
      checkpoint: RUN, or RUN/checkpoints/STEP.
      workdir: gets scores/: scores.jsonl, scores.csv, pictures.
      built: folder of a corpus; None opens or builds that of the config.

    Returns:
      The headline scores as a table of text, and where the rest is.
    """
    folder, _ = loop.run_and_step(checkpoint)  # refuses what it can before a corpus is built
    corpus = prepare.corpus_of(settings, workdir, built)
    held_out = all_held_out(corpus, settings.evaluate)
    out = workdir / "scores"
    rows = loop.rows_trained_on(folder, corpus)
    rows = np.flatnonzero(corpus.obs["split"] == "pool") if rows is None else rows
    length, mask = settings.run.model.length, settings.run.masking.of_scores()
    untrained = step.initial_params(0, settings.run.model, len(corpus.vocabulary))
    found = {"model": scoring.evaluate_run(checkpoint, settings.run, held_out, out)}
    found["untrained"] = scoring.score_params(
        untrained, settings.run.model, mask, held_out, out, "untrained"
    )
    found |= scoring.baseline_rows(corpus, rows, held_out, out) | scoring.unfitted_rows(held_out)
    for data in held_out:
        for name, of_floor in scores.rows_of_floors(data, rows, length, mask).items():
            found.setdefault(name, []).extend(of_floor)
    made = {
        "checkpoint": str(checkpoint),
        "commit": provenance.commit(),
        "packages": provenance.packages(),
    }
    scored = [{"model": name, **row, **made} for name, of in found.items() for row in of]
    scoring.write_lines(out / "scores.jsonl", scored)
    table = pd.DataFrame(scored)
    table.to_csv(out / "scores.csv", index=False)
    draw_noise(table, out)
    return f"{headline(table)}\n\nAll scores, with intervals, and pictures: {out}"


def draw_noise(table: pd.DataFrame, out: pathlib.Path) -> None:
    """A picture for each data set and kind of change, of the table's first eight models."""
    rows = table[(table["task"] == "noise") & table["value"].notna()]
    for dataset, of_set in rows.groupby("dataset"):
        for kind, what in (("noised", "cells noised"), ("thinned", "counts kept")):
            found: dict[str, list[Score]] = {}
            for row in of_set[of_set["of"].str.endswith(what)].itertuples():
                score = Score(row.score, row.value, row.low, row.high, of=row.of)
                found.setdefault(row.model, []).append(score)
            if found:
                shown = dict(list(found.items())[: len(noise.COLOURS)])
                noise.draw(shown, out / f"noise-{kind}-{dataset}.png", title=dataset)


def headline(table: pd.DataFrame) -> str:
    """Models x main scores of each data set, with 95 % intervals, as text."""
    whole = table[(table["of"] == "") & table["score"].isin(HEADLINE) & table["value"].notna()]
    whole = whole[whole["positions"].isna() | (whole["positions"] == "mask")]
    whole = whole[whole["read_from"].isna() | (whole["read_from"] == "P")]
    parts = []
    for (task, dataset), rows in whole.groupby(["task", "dataset"], sort=False):
        cells = rows.assign(text=[_with_interval(*row) for row in rows[["value", "low", "high"]]
                                  .itertuples(index=False)])  # fmt: skip
        wide = cells.pivot_table("text", "model", "score", aggfunc="first", sort=False)
        parts.append(f"{task}, {dataset}\n{wide.fillna('').to_string()}")
    return "\n\n".join(parts)


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + ("" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]")
