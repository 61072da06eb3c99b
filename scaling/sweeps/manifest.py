"""A study's jobs -> `study.json`: the plan, before anything runs, and how each job ended."""

import json
import pathlib
import traceback

from scaling.pretrain import hosts
from scaling.settings import Settings
from scaling.sweeps.jobs import Job

MANIFEST, FAILED = "study.json", "failed.json"


def write(
    workdir: pathlib.Path, settings: Settings, jobs: list[Job], done: set[str],
    faults: dict[str, str],
) -> None:
    """Writes the manifest: settings, and one row a job with every axis and its state.

    Args:
      workdir: of the study.
      settings: of the study.
      jobs: all of them.
      done: names of those that have their scores.
      faults: what was wrong with those that failed in this start, by name.
    """
    rows = [
        {"name": job.name, "model": job.model, **job.axes()}
        | {"state": "done" if job.name in done else "failed" if job.name in faults else "left"}
        | ({"error": faults[job.name]} if job.name in faults else {})
        for job in jobs
    ]
    content = {"config_hash": settings.hash(), "settings": settings.content(), "jobs": rows}
    write_text(workdir / MANIFEST, json.dumps(content, indent=1))


def refuse_other(workdir: pathlib.Path, settings: Settings) -> None:
    """Refuses a folder that holds the study of another config.

    Raises:
      ValueError: it does; with the fields that differ.
    """
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


def write_fault(folder: pathlib.Path, error: Exception | str) -> str:
    """Writes a job's error, and where it was raised, into its folder; returns it in a line."""
    told = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    content = {"error": told}
    if isinstance(error, Exception):
        content["traceback"] = traceback.format_exception(error)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FAILED, json.dumps(content, indent=1))
    return told


def read_fault(folder: pathlib.Path) -> str:
    """The error that a job left in its folder."""
    return json.loads((folder / FAILED).read_text())["error"]


def write_text(path: pathlib.Path, text: str) -> None:
    """A file, whole or not at all; of the processes of a job the first one writes."""
    if not hosts.first():
        return
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)


def _flat(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """[("train.steps", "400"), ...], named as in a config."""
    found = []
    for name, value in settings.items():
        inner = prefix if name == "run" else f"{prefix}{name}."
        found += _flat(value, inner) if isinstance(value, dict) else [(prefix + name, repr(value))]
    return found
