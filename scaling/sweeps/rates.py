"""A study, learning rates -> the best of its smallest and its largest runs."""

import pathlib

from scaling.corpus.shards import Corpus
from scaling.pretrain import sweep
from scaling.settings import Settings
from scaling.sweeps import jobs


def at_ends(
    settings: Settings, corpus: Corpus, rates: list[float], folder: pathlib.Path
) -> tuple[dict, list[dict], str]:
    """Trains the study's smallest and largest runs (`jobs.ends`) with each rate.

    Args:
      settings: of the study.
      corpus: to train on.
      rates: peak learning rates.
      folder: gets a folder for each run and rate; what is done is skipped.

    Returns:
      The best rate by end; rows of end, learning_rate and held_out_loss (None: it diverged); and
      `compare`'s text.
    """
    planned = jobs.plan(settings, int((corpus.obs["split"] == "pool").sum()))
    ends = jobs.ends(planned, settings)
    runs = {job.name: jobs.run_settings(settings, job) for job in ends.values()}
    losses = sweep.of_rates(runs, corpus, rates, folder)
    of_ends = {(end, rate): losses[job.name, rate] for end, job in ends.items() for rate in rates}
    rows = [
        {"end": end, "learning_rate": rate, "held_out_loss": loss}
        for (end, rate), loss in of_ends.items()
    ]
    best, text = compare(of_ends, settings.run.train.learning_rate)
    return best, rows, text


def compare(losses: dict[tuple[str, float], float | None], held: float) -> tuple[dict, str]:
    """The best rate at each end of a study, and in words whether they differ.

    Args:
      losses: held-out loss by end and rate; None where the run diverged.
      held: the rate that the study trains with.

    Returns:
      ({end: its best rate, or None where all diverged}, text).
    """
    rates, found = sorted({rate for _, rate in losses}), {}
    for end in dict.fromkeys(end for end, _ in losses):
        mine = [(losses[end, rate], rate) for rate in rates if losses[end, rate] is not None]
        found[end] = min(mine)[1] if mine else None
    lines = []
    for end, best in found.items():
        told = "every rate diverged" if best is None else f"the best rate is {best:g}"
        if best in (rates[0], rates[-1]):
            told += ", at the end of the rates tried: the best of all may lie beyond"
        if best is not None and losses.get((end, held)) is not None:
            told += f"; at {held:g}, train.learning_rate, the held-out loss is "
            told += f"{losses[end, held] - losses[end, best]:.3g} above its"
        lines.append(f"{end}: {told}")
    same = len(set(found.values())) == 1
    lines.append(
        f"The best learning rate {'is the same at all ends' if same else 'DIFFERS between ends'}"
        + ("" if same else ": one rate for all sizes favours those for which it is best")
    )
    return found, "\n".join(lines)
