"""Settings -> corpus, runs, scores, fits and report in one folder; skips what is done."""

import contextlib
import datetime
import functools
import json
import pathlib
import shlex
import sys
from collections.abc import Iterator

import filelock
import jax
import pandas as pd
from tqdm import tqdm

from scaling import prepare, provenance, scoring
from scaling.analyse import report
from scaling.corpus import diversity
from scaling.corpus.shards import Corpus
from scaling.evaluate import noise_curves, scores
from scaling.evaluate.held_out import HeldOut, all_held_out
from scaling.pretrain import hosts, loop, step, writer
from scaling.settings import Settings
from scaling.sweeps import hparams, manifest, processes
from scaling.sweeps.jobs import BASELINES, UNTRAINED, Job, cost, plan, run_settings

SCORES, LOCK, LOG = "scores.jsonl", "lock", "log.txt"
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left{postfix}"


class Incomplete(Exception):
    """Some jobs of a study failed; all others are done, and the report is of those.

    Attributes:
      verdict: what the report of the others says.
    """

    def __init__(self, message: str, verdict: str):
        super().__init__(message)
        self.verdict = verdict


def run(
    settings: Settings, workdir: pathlib.Path, at_once: int = 0, submit: dict | None = None
) -> str:
    """Runs a study, or what is left of it; a job that fails does not end the others.

    On many hosts all train, and each computes the scores that the first one writes.

    Args:
      settings: of the whole study.
      workdir: gets study.json, corpus/, runs/<job>/, scores.jsonl, scores.csv, report.html, plots/.
      at_once: jobs at a time, each in a process of its own; 0: one after another in this one.
      submit: see `processes.submitted`; None runs the jobs on this machine.

    Returns:
      The verdict in words, and where the report is.

    Raises:
      ValueError: bad input or settings, or the folder holds another study.
      Incomplete: jobs failed; the same call tries them again.
    """
    plan(settings)  # refuses what it can before a corpus is built
    manifest.refuse_other(workdir, settings)
    apart = bool(at_once or submit)
    if apart and jax.distributed.is_initialized() and jax.process_count() > 1:
        raise ValueError(
            "--at_once and --submit give each run a process of its own, and this is one of "
            f"{jax.process_count()} that share a run; start one, without --coordinator"
        )
    build = functools.partial(prepare.corpus_of, settings, workdir)
    corpus = build() if apart else hosts.one_by_one(build)
    if hosts.first():
        print(prepare.describe(corpus), file=sys.stderr)
    jobs = plan(settings, int((corpus.obs["split"] == "pool").sum()))
    for scheme in settings.study.schemes:  # refuses what the pool lacks before any run
        of_scheme = [job for job in jobs if job.scheme == scheme]
        largest = max(of_scheme, key=lambda job: job.cells)
        loop.subset(corpus, run_settings(settings, largest).train)
    held_out = all_held_out(corpus, settings.evaluate)
    faults = _do_all(settings, workdir, jobs, corpus, held_out, at_once, submit)
    return _report(settings, workdir, jobs, faults, corpus) if hosts.first() else ""


def attempt(
    job: Job, settings: Settings, corpus: Corpus, held_out: list[HeldOut], workdir: pathlib.Path
) -> str:
    """Does a job and writes its scores; or writes into its folder what failed, and returns it."""
    folder = _folder(workdir, job)
    try:
        rows = _do(job, settings, corpus, held_out, folder)
        scoring.write_lines(folder / SCORES, _complete(rows, job, settings))
    except hosts.Stopped:
        raise
    except Exception as error:
        # Of many hosts one that failed alone must end, so that none waits for it.
        if jax.process_count() > 1 and not isinstance(error, FloatingPointError):
            raise
        return manifest.write_fault(folder, error)
    if hosts.first():
        (folder / manifest.FAILED).unlink(missing_ok=True)
    return ""


def work(settings: Settings, workdir: pathlib.Path, job: Job) -> None:
    """`attempt` of a process that was started for this job alone.

    Where another process is at the job, of an earlier start of the study, it waits for that one.
    """
    folder = _folder(workdir, job)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / LOCK):
        if not (folder / SCORES).exists():
            corpus = prepare.corpus_of(settings, workdir)
            attempt(job, settings, corpus, all_held_out(corpus, settings.evaluate), workdir)


def _do_all(settings, workdir, jobs, corpus, held_out, at_once, submit) -> dict[str, str]:
    """Does the jobs that are left, and keeps the manifest and the bar; returns faults by name."""
    apart, named = bool(at_once or submit), {job.name: job for job in jobs}
    done = {name for name, job in named.items() if _is_done(_folder(workdir, job), apart)}
    left = [job for job in jobs if job.name not in done]
    scored, genes, faults = sum(len(data.rows) for data in held_out), len(corpus.vocabulary), {}
    costs = {name: cost(settings, job, scored, genes) for name, job in named.items()}
    manifest.write(workdir, settings, jobs, done, faults)
    tasks = {job.name: (settings, workdir.resolve(), job) for job in left}
    if submit:
        ends = processes.submitted(work, tasks, submit, workdir / "submitted")
    elif at_once:
        logs = {name: _folder(workdir, named[name]) / LOG for name in tasks}
        ends = processes.at_once(work, tasks, at_once, logs)
    else:
        ends = ((job.name, attempt(job, settings, corpus, held_out, workdir)) for job in left)
    spent = {"total": sum(costs.values()), "initial": sum(costs[name] for name in done)}
    how = {"bar_format": BAR, "smoothing": 0, "disable": not hosts.first()}
    with contextlib.closing(ends), tqdm(desc="study", **spent, **how) as bar:
        bar.set_postfix_str(_counts(jobs, done, faults))
        for name, fault in ends:
            folder = _folder(workdir, named[name])
            if apart and (folder / SCORES).exists():
                fault = ""  # whatever its process did afterwards
            elif apart and fault:
                manifest.write_fault(folder, fault)
            elif apart:
                fault = manifest.read_fault(folder)
            if fault:
                faults[name] = fault
                bar.write(f"failed: {name}: {fault}", file=sys.stderr)
            else:
                done.add(name)
            manifest.write(workdir, settings, jobs, done, faults)
            bar.set_postfix_str(_counts(jobs, done, faults), refresh=False)
            bar.update(costs[name])
    return faults


def _report(settings, workdir, jobs, faults, corpus) -> str:
    """The tables and the report of what there is."""
    files = [_folder(workdir, job) / SCORES for job in jobs]
    rows = [row for path in files for row in writer.read_rows(path)]
    missing = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
    verdict = "Nothing could be scored, so there is no report"
    if rows:
        scoring.write_lines(workdir / SCORES, rows)
        table = pd.DataFrame(rows)
        table.to_csv(workdir / "scores.csv", index=False)
        hparams.write(table, settings.run.train.learning_rate, workdir / "runs")
        known = origin(workdir) | {"compute": _spent(workdir, jobs)}
        known |= {"cells": prepare.describe(corpus)}
        known |= {"missing": missing} if missing else {}
        verdict = analyse(table, workdir, known)
        pictures = {path.stem: path for path in sorted((workdir / "plots").glob("*.png"))}
        writer.write_report(workdir / "runs", verdict, pictures)
        verdict += f"\n\nReport: {workdir / 'report.html'}"
    if not faults:
        return verdict
    raise Incomplete(
        f"{len(faults)} of {len(jobs)} jobs failed: {missing}; {manifest.FAILED} in their folders "
        f"in {workdir / 'runs'} has more, and the same command tries them again",
        f"Without {len(faults)} of {len(jobs)} jobs, which failed: {', '.join(faults)}\n{verdict}",
    )


def analyse(table: pd.DataFrame, out: pathlib.Path, known: dict[str, str]) -> str:
    """Writes the report of a table of scores, its curves and its pictures; see `report.analyse`."""
    return report.analyse(table, out, known, noise_curves.draw_all(table, out / "plots"))


def _spent(workdir: pathlib.Path, jobs: list[Job]) -> str:
    files = [_folder(workdir, job) / loop.DONE for job in jobs if job.steps]
    runs = [json.loads(path.read_text()) for path in files if path.exists()]
    seen, flops, seconds = (sum(r[of] for r in runs) for of in ("exposures", "flops", "seconds"))
    return (
        f"pretraining: {len(runs)} runs that saw {seen:,} cells, {flops:.3g} model FLOPs (counted "
        f"products, forward and backward), {seconds / 3600:.2f} hours, summed over runs"
    )


def _folder(workdir: pathlib.Path, job: Job) -> pathlib.Path:
    return workdir / "runs" / job.name


def _is_done(folder: pathlib.Path, apart: bool) -> bool:
    done = (folder / SCORES).exists()
    return done if apart else hosts.all_agree(done)  # which takes hold of the devices


def _counts(jobs, done, faults) -> str:
    return f"{len(done)} of {len(jobs)} jobs done, {len(faults)} failed"


def _do(job: Job, settings: Settings, corpus: Corpus, held_out, folder) -> list[dict]:
    """Trains or fits, and scores; returns rows without what is common to the job."""
    run = run_settings(settings, job)
    common, length, mask = job.axes(), run.model.length, settings.run.masking.of_scores()
    if job.model == UNTRAINED:
        params = step.initial_params(job.init_seed, run.model, len(corpus.vocabulary))
        common |= {"kind": "baseline", "tokens": 0}
        found = {UNTRAINED: scoring.score_params(params, run.model, mask, held_out)}
        if job == plan(settings, None)[0]:
            found |= scoring.unfitted_rows(held_out)
        return [
            {**common, "encoder": job.encoder if name == UNTRAINED else None, "model": name, **row}
            for name, of_model in found.items()
            for row in of_model
        ]
    rows = loop.subset(corpus, run.train)
    tokens = int(corpus.lengths(rows).clip(max=length).sum())
    common |= {"tokens": tokens, "spike": run.train.spike}
    common |= {"spike_share": run.train.spike_share}
    if job.model == BASELINES:
        common |= diversity.of_subset(corpus, rows)
        found = scoring.baseline_rows(corpus, rows, held_out)
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
        "denominator": run.objective.denominator,
        **{k: summary[k] for k in ("exposures", "steps", "converged", "held_out_loss")},
        **{k: summary[k] for k in ("parameters", "non_embedding_parameters", *diversity.MEASURES)},
    }
    scored = scoring.evaluate_run(folder, run, held_out, masking=mask)
    return [{**common, **row} for row in scored]


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
