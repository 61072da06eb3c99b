"""Settings -> corpus, runs, scores, fits and report in one folder; skips what is done."""

import dataclasses
import datetime
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from tqdm import tqdm

from scaling import prepare, provenance
from scaling.analyse import report
from scaling.corpus import diversity
from scaling.corpus.shards import Corpus
from scaling.evaluate import representations, scores
from scaling.evaluate.held_out import HeldOut, all_held_out
from scaling.pretrain import hosts, loop, step, writer
from scaling.settings import Settings

SCORES, MANIFEST = "scores.jsonl", "study.json"
HPARAMS = ("objective", "cells", "seed", "similarity_weight", "learning_rate", "steps")


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of the study's manifest: what is trained or fitted, on which cells."""

    name: str
    model: str
    cells: int
    seed: int
    scheme: str = "random"


def run(settings: Settings, workdir: pathlib.Path) -> str:
    """Runs a study, or what is left of it.

    On many hosts all train, and each computes the scores that the first one writes.

    Args:
      settings: of the whole study.
      workdir: gets corpus/, runs/<job>/, scores.jsonl, scores.csv, report.html, plots/.

    Returns:
      The verdict in words, and where the report is.

    Raises:
      ValueError: bad input or settings, or the folder holds another study.
    """
    plan(settings)  # refuses what it can before a corpus is built
    _refuse_other_study(workdir, settings)
    corpus = hosts.one_by_one(lambda: prepare.corpus_of(settings, workdir))
    if hosts.first():
        print(prepare.describe(corpus), file=sys.stderr)
    jobs = plan(settings, int((corpus.obs["split"] == "pool").sum()))
    largest = max(job.cells for job in jobs)
    for scheme in settings.study.schemes:  # refuses what the pool lacks before any run
        job = Job("", "", largest, settings.study.seeds[0], scheme)
        loop.subset(corpus, run_settings(settings, job).train)
    held_out = all_held_out(corpus, settings.evaluate)
    content = {"config_hash": settings.hash(), "settings": settings.content()}
    content["jobs"] = [dataclasses.asdict(job) for job in jobs]
    _write(workdir / MANIFEST, lambda partial: partial.write_text(json.dumps(content, indent=1)))
    for job in (bar := tqdm(jobs, desc="study", unit="job", disable=not hosts.first())):
        bar.set_postfix_str(job.name)
        folder = workdir / "runs" / job.name
        if not hosts.all_agree((folder / SCORES).exists()):
            rows = _do(job, settings, corpus, held_out, folder)
            write_lines(folder / SCORES, _complete(rows, job, settings))
    if not hosts.first():
        return ""
    rows = [row for job in jobs for row in writer.read_rows(workdir / "runs" / job.name / SCORES)]
    write_lines(workdir / SCORES, rows)
    table = pd.DataFrame(rows)
    table.to_csv(workdir / "scores.csv", index=False)
    _write_hparams(table, settings, workdir)
    verdict = report.analyse(table, workdir, origin(workdir) | {"cells": prepare.describe(corpus)})
    return f"{verdict}\n\nReport: {workdir / 'report.html'}"


def plan(settings: Settings, pool: int | None = None) -> list[Job]:
    """All jobs of a study, in the order in which they are done.

    Args:
      settings: of the study.
      pool: cells of the training pool; None where not known: without sizes that are fractions.

    Raises:
      ValueError: runs too short for their cells or warm-up, or a fraction of too few cells.
    """
    grid = settings.study
    sizes = grid.cells(pool)
    for cells in sizes:
        settings.run.train.total_steps(cells)
    jobs = [Job(f"untrained-s{seed}", "untrained", 0, seed) for seed in grid.seeds]
    for seed, scheme, cells in itertools.product(grid.seeds, grid.schemes, sizes):
        kind = "" if scheme == "random" else f"-{scheme}"
        for model in ("baselines", *grid.objectives):
            jobs.append(Job(f"{model}{kind}-n{cells}-s{seed}", model, cells, seed, scheme))
    return jobs


def run_settings(settings: Settings, job: Job) -> step.RunSettings:
    """Settings of one pretraining run of a study."""
    train = dataclasses.replace(
        settings.run.train,
        cells=job.cells,
        scheme=job.scheme,
        subset_seed=job.seed,
        init_seed=job.seed,
        mask_seed=job.seed,
    )
    objective = settings.run.objective
    if job.model in settings.study.objectives:
        objective = dataclasses.replace(objective, name=job.model)
    return dataclasses.replace(settings.run, train=train, objective=objective)


def evaluate_run(
    given: pathlib.Path, run: step.RunSettings, held_out: list[HeldOut],
    pictures: pathlib.Path | None = None,
) -> list[dict]:
    """Scores of a trained run's last checkpoint, or of one that is named.

    Args:
      given: RUN or RUN/checkpoints/STEP.
      run: what it was trained with.
      held_out: cells to score.
      pictures: folder that gets them; None draws none.

    Raises:
      ValueError: no run, one of other model or masking settings, or one that was trained with
        another vocabulary than the cells' corpus.
    """
    folder, at = loop.run_and_step(given)
    held = json.loads((folder / loop.SETTINGS).read_text())
    for part in ("model", "masking"):
        asked = dataclasses.asdict(getattr(run, part))
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
                f"{found}; build the corpus with data.vocabulary={folder}/vocabulary.json"
            )
    corpus = held_out[0].corpus
    params = loop.load_params(folder, run.model, len(corpus.vocabulary), at)
    rows = loop.rows_trained_on(folder, corpus)
    labels = None if rows is None else corpus.obs["cell_type"].to_numpy(str)[rows]
    return score_params(params, run, held_out, pictures, "model", labels)


def score_params(
    params: dict,
    run: step.RunSettings,
    held_out: list[HeldOut],
    pictures: pathlib.Path | None = None,
    name: str = "",
    training_labels: np.ndarray | None = None,
) -> list[dict]:
    """Scores of weights at all tasks; see `evaluate_run` and `scores.rows_of_representation`."""
    found = []
    told = {"training_labels": training_labels, "pictures": pictures, "name": name}
    for data in held_out:
        found += scores.rows_of_model(params, run.model, run.masking, data)
        of = representations.of_model(params, run.model, data.settings, data.corpus)
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


def _do(job: Job, settings: Settings, corpus: Corpus, held_out, folder) -> list[dict]:
    """Trains or fits, and scores; returns rows without what is common to the job."""
    run = run_settings(settings, job)
    common = {"subset_seed": job.seed, "init_seed": None, "mask_seed": None, "cells": job.cells}
    length, mask = run.model.length, run.masking
    if job.model == "untrained":
        params = step.initial_params(job.seed, run.model, len(corpus.vocabulary))
        common |= {"kind": "baseline", "subset_seed": None, "tokens": 0}
        found = {"untrained": score_params(params, run, held_out)}
        if job.seed == settings.study.seeds[0]:
            found |= unfitted_rows(held_out)
        return [
            {**common, "model": name, "init_seed": job.seed, **row}
            for name, of_model in found.items()
            for row in of_model
        ]
    rows = loop.subset(corpus, run.train)
    tokens = int(corpus.lengths(rows).clip(max=length).sum())
    common |= {"tokens": tokens, "scheme": job.scheme, "spike": run.train.spike}
    common |= {"spike_share": run.train.spike_share}
    if job.model == "baselines":
        common |= diversity.of_subset(corpus, rows)
        found = baseline_rows(corpus, rows, held_out)
        scored = [
            {**common, "model": name, "kind": "baseline", **row}
            for name, of_model in found.items()
            for row in of_model
        ]
        for data in held_out:
            for name, of_floor in scores.rows_of_floors(data, rows, length, mask).items():
                scored += [{**common, "model": name, "kind": "floor", **row} for row in of_floor]
        return scored
    summary = loop.pretrain(run, corpus, folder)
    common |= {
        "model": job.model,
        "kind": "pretrained",
        "init_seed": job.seed,
        "mask_seed": job.seed,
        "variant": run.objective.variant,
        "similarity_weight": run.objective.weight if job.model == "cab" else 0.0,
        "denominator": run.objective.denominator,
        **{k: summary[k] for k in ("exposures", "steps", "converged", "held_out_loss")},
        **{k: summary[k] for k in ("parameters", "non_embedding_parameters", *diversity.MEASURES)},
    }
    return [{**common, **row} for row in evaluate_run(folder, run, held_out)]


def _complete(rows: list[dict], job: Job, settings: Settings) -> Iterator[dict]:
    absent = {"exposures": 0, "converged": None}
    made = {"run": job.name, "config_hash": settings.hash(), "commit": provenance.commit()}
    made["packages"] = provenance.packages()
    for row in rows:
        yield {**absent, **row, **made}


def origin(workdir: pathlib.Path) -> dict[str, str]:
    """What it takes to repeat what stands in a folder."""
    return {
        "command": shlex.join(["python", "-m", "experiments.study", *sys.argv[1:]]),
        "commit": provenance.commit(),
        "packages": provenance.packages(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "folder": str(workdir),
    }


def _refuse_other_study(workdir: pathlib.Path, settings: Settings) -> None:
    path = workdir / MANIFEST
    if path.exists():
        content = json.loads(path.read_text())
        held, now = content["settings"], json.loads(json.dumps(settings.content()))
        differences = dict(sorted(set(_flat(held)) ^ set(_flat(now))))
        if differences:
            raise ValueError(
                f"{workdir} holds a study of another config, which differs in "
                f"{', '.join(differences)}; give another --workdir or remove the folder"
            )


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """[("train.steps", "400"), ...], named as in a config."""
    found = []
    for name, value in settings.items():
        inner = prefix if name == "run" else f"{prefix}{name}."
        found += _flat(value, inner) if isinstance(value, dict) else [(prefix + name, repr(value))]
    return found


def _write_hparams(table: pd.DataFrame, settings: Settings, workdir: pathlib.Path) -> None:
    """One HParams session per run, with its headline scores as metrics."""
    trained = table[(table["kind"] == "pretrained") & table["value"].notna()]
    trained = trained[trained["positions"].isna() | (trained["positions"] == "mask")]
    if trained.empty:
        return
    tags = trained["dataset"] + "/" + trained["score"]
    tags += np.where(trained["read_from"].notna(), "_" + trained["read_from"].fillna(""), "")
    trained = trained.assign(tag=tags)
    columns = sorted(trained["tag"].unique())
    writer.write_hparams_columns(workdir / "runs", list(HPARAMS), columns)
    for name, rows in trained.groupby("run"):
        first = rows.iloc[0]
        values = {
            "objective": first["model"],
            "cells": int(first["cells"]),
            "seed": int(first["init_seed"]),
            "similarity_weight": float(first["similarity_weight"]),
            "learning_rate": settings.run.train.learning_rate,
            "steps": int(first["steps"]),
        }
        results = dict(zip(rows["tag"], rows["value"], strict=True))
        writer.write_hparams(workdir / "runs" / name, values, results)


def write_lines(path: pathlib.Path, rows) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, lambda partial: partial.write_text(text))


def _write(path: pathlib.Path, fill: Callable[[pathlib.Path], object]) -> None:
    if not hosts.first():
        return
    partial = path.with_name(path.name + ".partial")
    fill(partial)
    partial.rename(path)
