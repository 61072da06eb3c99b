"""Settings of a study -> its jobs, one for each combination of the axes, and each job's run."""

import dataclasses
import itertools

from scaling.pretrain import flops, masking, step
from scaling.settings import Settings
from scaling.sweeps.grid import supervision_name

BASELINES, UNTRAINED = "baselines", "untrained"
LATENTS = 128  # of MAM, where the config's model has none


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of the study's manifest: what is trained or fitted, on which cells.

    Attributes:
      name: of its folder.
      model: an objective, "untrained" or "baselines".
      cells: unique ones.
      subset_seed, init_seed, mask_seed: None where they have no part in it, as all that follows.
      scheme: of the subset.
      encoder: name of the encoder.
      steps: of the whole run.
      epochs: passes over the cells, where the duration was given in them.
      variant, similarity_weight: of cab; the weight is 0.0 where nothing is penalised.
      masking, masking_rate: strategy and share, trained with.
      encoding: of the model's input.
      supervision: columns whose classes are predicted too, see `grid.supervision_name`.
    """

    name: str
    model: str
    cells: int
    subset_seed: int | None = None
    scheme: str | None = "random"
    init_seed: int | None = None
    mask_seed: int | None = None
    encoder: str | None = None
    steps: int | None = None
    epochs: float | None = None
    variant: str | None = None
    similarity_weight: float | None = None
    masking: str | None = None
    masking_rate: float | None = None
    encoding: str | None = None
    supervision: str | None = None

    def axes(self) -> dict:
        """Every axis by its name in the manifest and in the scores."""
        axes = dataclasses.asdict(self)
        del axes["name"], axes["model"]
        return axes | {"duration": self.duration}

    @property
    def duration(self) -> str | None:
        """As it was asked for: "400 steps", "3 epochs"."""
        if self.epochs:
            return f"{self.epochs:g} epochs"
        return f"{self.steps} steps" if self.steps else None


def plan(settings: Settings, pool: int | None = None) -> list[Job]:
    """All jobs of a study, in the order in which they are done.

    Untrained models are those of every encoder, input encoding and init seed, baselines those of
    every subset.

    Args:
      settings: of the study.
      pool: cells of the training pool; None where not known: without sizes that are fractions.

    Raises:
      ValueError: runs too short for their cells or warm-up, a fraction of too few cells, axes that
        contradict the config or each other.
    """
    grid, run = settings.study, settings.run
    encoders = list(grid.overrides()) or [f"{run.model.layers}x{run.model.width}"]
    maskings = grid.maskings or (run.masking.strategy,)
    rates = grid.masking_rates or (run.masking.rate,)
    encodings = grid.encodings or (run.model.encoding,)
    supervisions = list(grid.supervised()) or [supervision_name(run.supervision.columns)]
    objectives, triples = _objectives(settings), grid.seed_triples()
    jobs = {}

    def add(name: list[str], *of, **axes) -> None:
        job = Job("-".join(filter(None, name)), *of, **axes)
        if jobs.setdefault(job.name, job) != job:
            raise ValueError(f"two jobs of the study are {job.name!r}; give values further apart")

    for (_, seed, _), encoder, encoding in itertools.product(triples, encoders, encodings):
        marks = encoder if len(encoders) > 1 else "", encoding if len(encodings) > 1 else ""
        axes = {"init_seed": seed, "encoder": encoder, "encoding": encoding}
        add([UNTRAINED, *marks, f"s{seed}"], UNTRAINED, 0, scheme=None, **axes)
    for seeds, scheme, cells in itertools.product(triples, grid.schemes, grid.cells(pool)):
        kind, at = "" if scheme == "random" else scheme, f"n{cells}"
        add([BASELINES, kind, at, f"s{seeds[0]}"], BASELINES, cells, seeds[0], scheme)
        durations = _durations(settings, cells)
        inputs = itertools.product(encoders, encodings, supervisions)
        others = itertools.product(inputs, objectives, maskings, rates, durations)
        for (encoder, encoding, supervised), objective, masked, rate, (steps, epochs) in others:
            objective, variant, weight, label = objective
            axes = {"variant": variant, "similarity_weight": weight, "masking_rate": rate}
            axes |= {"encoder": encoder, "steps": steps, "epochs": epochs, "masking": masked}
            axes |= {"encoding": encoding, "supervision": supervised}
            axes |= {"init_seed": seeds[1], "mask_seed": seeds[2]}
            took = f"{epochs:g}epochs" if epochs else f"{steps}steps"
            marks = [
                encoder if len(encoders) > 1 else "", encoding if len(encodings) > 1 else "",
                label, f"{supervised}_labels" if len(supervisions) > 1 else "",
                masked if len(maskings) > 1 else "",
                f"m{rate:g}" if len(rates) > 1 else "", kind, took if len(durations) > 1 else "",
                at, _seeds_label(seeds),
            ]  # fmt: skip
            add([objective, *marks], objective, cells, seeds[0], scheme, **axes)
    for job in jobs.values():
        of = run_settings(settings, job)  # refuses what an axis sets wrong
        if not -of.model.layers - 1 <= settings.evaluate.layer <= of.model.layers:
            raise ValueError(
                f"evaluate.layer is {settings.evaluate.layer}, and encoder {job.encoder!r} of "
                f"study.encoders has {of.model.layers} layers"
            )
    return list(jobs.values())


def run_settings(settings: Settings, job: Job) -> step.RunSettings:
    """Settings of one pretraining run of a study; what its job leaves open is the config's."""
    run, fields = settings.run, settings.study.overrides().get(job.encoder, {})
    try:
        model = dataclasses.replace(run.model, **fields)
    except TypeError as error:
        known = [f"{of.name}: {of.type.__name__}" for of in dataclasses.fields(run.model)]
        raise ValueError(
            f"study.encoders: {job.encoder!r} sets {fields}; there are {', '.join(known)}"
        ) from error
    if job.encoding:
        model = dataclasses.replace(model, encoding=job.encoding)
    if job.masking:  # MAM's latents are part of its model alone
        latents = (model.latents or LATENTS) if job.masking == "mam" else 0
        model = dataclasses.replace(model, latents=latents)
    supervision = run.supervision
    if job.supervision in (of := settings.study.supervised()):
        supervision = dataclasses.replace(supervision, columns=of[job.supervision])
    train = {"cells": job.cells, "scheme": job.scheme, "subset_seed": job.subset_seed}
    train |= {"init_seed": job.init_seed, "mask_seed": job.mask_seed}
    if job.steps:
        train |= {"steps": 0 if job.epochs else job.steps, "epochs": job.epochs or 0.0}
    objective = {"variant": job.variant, "weight": job.similarity_weight or None}
    if job.model not in (BASELINES, UNTRAINED):
        objective["name"] = job.model
    return dataclasses.replace(
        run,
        model=model,
        supervision=supervision,
        masking=_with(run.masking, {"strategy": job.masking, "rate": job.masking_rate}),
        objective=_with(run.objective, objective),
        train=_with(run.train, train),
    )


def cost(settings: Settings, job: Job, scored: int, vocabulary: int) -> int:
    """Model FLOPs of a job, about: to tell how much of a study is left.

    Args:
      settings: of the study.
      job: one of it.
      scored: held-out cells that it is scored on.
      vocabulary: V.
    """
    run = run_settings(settings, job)
    slots = masking.capacity(run.model.length, run.masking.rate)
    of = flops.of_cell(run.model, run.model.length, slots, vocabulary)
    return of.forward * scored + of.model * run.train.batch * (job.steps or 0)


def ends(jobs: list[Job], settings: Settings) -> dict[str, Job]:
    """The study's smallest and largest runs, by what they are, of its first values elsewhere.

    The smallest and the largest number of cells, each with the smallest and the largest encoder.
    """
    trained = [job for job in jobs if job.steps]
    first, models = trained[0], {}
    for job in trained:
        models.setdefault(job.encoder, run_settings(settings, job).model)
    by_cost = sorted(models, key=lambda name: flops.of_cell(models[name], 1, 1, 1).forward)
    sizes, same = sorted({job.cells for job in trained}), ("model", *_SAME)
    found = {}
    for encoder, cells in itertools.product((by_cost[0], by_cost[-1]), (sizes[0], sizes[-1])):
        mine = [job for job in trained if (job.encoder, job.cells) == (encoder, cells)]
        [job, *_] = [j for j in mine if all(getattr(j, n) == getattr(first, n) for n in same)]
        found[f"{encoder}, {cells} cells"] = job
    return found


# Axes whose first value all ends share. Of durations the first has its place in the order alone.
_SAME = (
    "subset_seed", "init_seed", "mask_seed", "scheme", "epochs", "variant", "similarity_weight",
    "masking", "masking_rate", "encoding", "supervision",
)  # fmt: skip


def _durations(settings: Settings, cells: int) -> list[tuple[int, float | None]]:
    """(steps, epochs or None) of the runs over so many cells; refuses those that are too short."""
    grid, train = settings.study, settings.run.train
    asked = [(steps, 0.0) for steps in grid.steps] + [(0, float(e)) for e in grid.epochs]
    asked = asked or [(train.steps, train.epochs)]
    runs = [dataclasses.replace(train, steps=steps, epochs=epochs) for steps, epochs in asked]
    return [(run.total_steps(cells), run.epochs or None) for run in runs]


def _objectives(settings: Settings) -> list[tuple[str, str | None, float, str]]:
    """(objective, variant, lambda, mark in the name) of the grid."""
    grid, own, found = settings.study, settings.run.objective, []
    variants = grid.variants or (own.variant,)
    if unused := {w[0] for w in grid.weights if isinstance(w, tuple)} - set(variants):
        raise ValueError(f"study.weights names {sorted(unused)}, which study.variants does not")
    for objective in grid.objectives:
        if objective == "mlm":
            found.append((objective, None, 0.0, ""))
        elif objective == "cab_no_similarity":
            if "recalibrated" not in variants:
                raise ValueError(
                    "study.objectives has cab_no_similarity, which under the variant 'plain' is "
                    "mlm; leave it out, or add 'recalibrated' to study.variants"
                )
            found.append((objective, "recalibrated", 0.0, ""))
        else:
            for variant in variants:
                weights = grid.weights_of(variant, own.weight)
                for weight in weights:
                    marks = variant if len(variants) > 1 else "", f"w{weight:g}"
                    label = "-".join(filter(None, marks[: 1 + (len(weights) > 1)]))
                    found.append((objective, variant, float(weight), label))
    return found


def _seeds_label(seeds: tuple[int, int, int]) -> str:
    return f"s{seeds[0]}" if len(set(seeds)) == 1 else "s" + ".".join(map(str, seeds))


def _with(settings, fields: dict):
    """A dataclass with those fields replaced that are not None."""
    given = {name: value for name, value in fields.items() if value is not None}
    return dataclasses.replace(settings, **given)
