"""A run's settings, widths, rates -> held-out loss of each run, by parameterisation; a plot."""

import dataclasses
import pathlib

from tqdm import tqdm

from scaling.corpus.shards import Corpus
from scaling.pretrain import loop
from scaling.pretrain.step import RunSettings

PARAMETERISATIONS = ("standard", "muP")


def sweep(
    run: RunSettings, corpus: Corpus, widths: list[int], rates: list[float], folder: pathlib.Path
) -> list[dict]:
    """Trains each width with each rate under both parameterisations; skips what is done.

    Args:
      run: settings of all runs. Other widths keep its width of heads and its F / D.
      corpus: to train on.
      widths: D; the first is the base width of muP, where both parameterisations are one.
      rates: peak learning rates.
      folder: gets a folder for each run.

    Returns:
      Rows of parameterisation, width, learning_rate and held_out_loss (None: it diverged).

    Raises:
      ValueError: a width that is no multiple of that of a head; and as `loop.pretrain`.
    """
    cases = [(name, D, rate) for name in PARAMETERISATIONS for D in widths for rate in rates]
    programs = {(name, D): resized(run, D, widths[0], name) for name, D, _ in cases}
    runs = {f"D{D}-base{run.model.base_width}": run for (_, D), run in programs.items()}
    losses = of_rates(runs, corpus, rates, folder)
    return [
        {"parameterisation": name, "width": D, "learning_rate": rate,
         "held_out_loss": losses[f"D{D}-base{programs[name, D].model.base_width}", rate]}
        for name, D, rate in cases
    ]  # fmt: skip


def of_rates(
    runs: dict[str, RunSettings], corpus: Corpus, rates: list[float], folder: pathlib.Path
) -> dict[tuple[str, float], float | None]:
    """Held-out loss of each run, by its name, at each rate; None where it diverged.

    Args:
      runs: settings by name.
      corpus: to train on.
      rates: peak learning rates.
      folder: gets a folder for each run and rate; what is done is skipped.
    """
    losses, cases = {}, [(name, rate) for name in runs for rate in rates]
    for name, rate in tqdm(cases, desc="sweep", unit="run"):
        train = dataclasses.replace(runs[name].train, learning_rate=rate)
        settings = dataclasses.replace(runs[name], train=train)
        try:
            summary = loop.pretrain(settings, corpus, folder / f"{name}-rate{rate:g}")
            losses[name, rate] = summary["held_out_loss"]
        except FloatingPointError:
            losses[name, rate] = None
    return losses


def resized(run: RunSettings, width: int, base: int, parameterisation: str) -> RunSettings:
    """The run with another width, its heads as wide and its F / D as before."""
    model, transferred = run.model, parameterisation == "muP" and width != base
    if width * model.heads % model.width:
        raise ValueError(f"width {width} is no multiple of {model.width // model.heads}, a head's")
    model = dataclasses.replace(
        model,
        width=width,
        heads=width * model.heads // model.width,
        feed_forward=width * model.feed_forward // model.width,
        base_width=base if transferred else 0,
    )
    return dataclasses.replace(run, model=model)


def best(rows: list[dict]) -> dict[str, dict[int, float]]:
    """The rate of the lowest loss, by parameterisation and width; none where all diverged."""
    found, ended = {}, [row for row in rows if row["held_out_loss"] is not None]
    for row in sorted(ended, key=lambda row: row["held_out_loss"]):
        of_width = found.setdefault(row["parameterisation"], {})
        of_width.setdefault(row["width"], row["learning_rate"])
    return found


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Held-out loss against learning rate, a panel for each parameterisation, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure((8, 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), PARAMETERISATIONS, strict=True):
        mine = [row for row in rows if row["parameterisation"] == name]
        for width in sorted({row["width"] for row in mine}):
            line = [r for r in mine if r["width"] == width and r["held_out_loss"] is not None]
            rates = [row["learning_rate"] for row in line]
            losses = [row["held_out_loss"] for row in line]
            (drawn,) = axes.plot(rates, losses, "o-", label=f"width {width}")
            least = min(zip(losses, rates, strict=True), default=None)
            if least:
                axes.plot(least[1], least[0], "*", markersize=14, color=drawn.get_color())
        axes.set(xscale="log", title=name, xlabel="peak learning rate (star: the best)")
        every = sorted({row["learning_rate"] for row in mine})
        axes.set_xticks(every, [f"{rate:g}" for rate in every])
        axes.minorticks_off()
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("held-out loss, nats")
    figure.savefig(path, dpi=120)
