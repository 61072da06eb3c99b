"""A checkpoint, a corpus -> the scores of its held-out cells beside the baselines', one folder."""

import dataclasses
import json
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
TABLE = "scores.jsonl"
QUESTION = "model", "task", "dataset"


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
      workdir: gets scores/: scores.jsonl, scores.csv, pictures. Rows that are there already, of
        the same checkpoint, stay where this evaluation has none of their model, task and data set.
      built: folder of a corpus; None opens or builds that of the config.

    Returns:
      The headline scores as a table of text, what has none and why, and where the rest is.

    Raises:
      ValueError: the folder has the scores of another checkpoint.
    """
    folder, _ = loop.run_and_step(checkpoint)  # refuses what it can before a corpus is built
    before = _rows_before(workdir / "scores" / TABLE, checkpoint)
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
    new = {tuple(row[field] for field in QUESTION) for row in scored}
    kept = [row for row in before if tuple(row[field] for field in QUESTION) not in new]
    scoring.write_lines(out / TABLE, [*kept, *scored])
    table = pd.DataFrame([*kept, *scored])
    table.to_csv(out / "scores.csv", index=False)
    draw_noise(table, out)
    parts = [headline(pd.DataFrame(scored)), not_scored(pd.DataFrame(scored))]
    if silent := sorted(set(settings.evaluate.baselines) - set(found)):
        parts.append(f"no score of these tasks: {', '.join(silent)}")
    parts.append(f"All scores, with intervals, and pictures: {out}")
    return "\n\n".join(filter(None, parts))


def _rows_before(path: pathlib.Path, checkpoint: pathlib.Path) -> list[dict]:
    """Rows of an earlier evaluation of the checkpoint."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if others := sorted({row["checkpoint"] for row in rows} - {str(checkpoint)}):
        raise ValueError(
            f"{path} has the scores of {', '.join(others)}; give another --workdir, and "
            f"--corpus={path.parents[1] / 'corpus'} where that is the corpus"
        )
    return rows


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
                picture = out / f"noise-{kind}-{dataset}.png"
                noise.draw(shown, picture, title=f"{dataset}, {what}")


def headline(table: pd.DataFrame) -> str:
    """Models x main scores of each data set, with 95 % intervals, as text."""
    rows = table[table["value"].notna() & table["score"].isin(HEADLINE)]
    rows = rows[rows["positions"].isna() | (rows["positions"] == "mask")]
    read = rows["read_from"].notna()
    rows = rows.assign(column=rows["score"] + (" from " + rows["read_from"]).where(read, ""))
    changed = (rows["task"] == "noise") & (rows["score"] == "accuracy")
    rows.loc[changed, "column"] = rows["of"]  # the accuracy with 20 % of cells noised
    rows = rows[(rows["of"] == "") | changed & ~rows["of"].str.contains(",")]
    texts = [_with_interval(*row) for row in rows[["value", "low", "high"]].itertuples(index=False)]
    parts = []
    for (task, dataset), of_set in rows.assign(text=texts).groupby(["task", "dataset"], sort=False):
        wide = of_set.pivot_table("text", "model", "column", aggfunc="first", sort=False)
        wide = wide.fillna("").rename_axis(None).rename_axis(None, axis=1)
        parts.append(f"{task}, {dataset}\n{wide.to_string()}")
    return "\n\n".join(parts)


def not_scored(table: pd.DataFrame) -> str:
    """A line for each data set and reason: tasks and the models that have no score of them."""
    models: dict[tuple, list[str]] = {}
    for (task, dataset, model), rows in table.groupby(["task", "dataset", "model"], sort=False):
        if rows["value"].isna().all():
            models.setdefault((dataset, rows["note"].iloc[0], task), []).append(model)
    tasks: dict[tuple, list[str]] = {}
    for (dataset, note, task), of in models.items():
        tasks.setdefault((dataset, ", ".join(of), note), []).append(task)
    return "\n".join(
        f"no score: {dataset}, {', '.join(of)}, of {named}: {note}"
        for (dataset, named, note), of in tasks.items()
    )


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + ("" if pd.isna(low) else f" [{low:.3f}, {high:.3f}]")
