"""Settings and a corpus -> a trained run folder: record, checkpoints, the mark that it is done."""

import contextlib
import json
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from scaling import provenance
from scaling.corpus import diversity, sketch, subsets
from scaling.corpus.shards import VOCABULARY, Corpus
from scaling.pretrain import (
    batches,
    checkpoint,
    fused_attention,
    hosts,
    optimizer,
    sharding,
    supervision,
    watch,
)
from scaling.pretrain.clock import Clock
from scaling.pretrain.masking import HELD_OUT_SEED, MaskedCells
from scaling.pretrain.model import ModelSettings, count_parameters
from scaling.pretrain.plan import Plan, padded_lengths
from scaling.pretrain.step import RunSettings, initial_params, initial_state, train_step
from scaling.pretrain.writer import METRICS, read_rows

SETTINGS, DONE, CHECKPOINTS = "settings.json", "done.json", "checkpoints"
CONVERGED = 0.01  # a run is not converged while its last tenth lowers the loss by more


def pretrain(
    settings: RunSettings, corpus: Corpus, folder: pathlib.Path, trace: int = 0
) -> dict:
    """Trains, or goes on where the folder's last checkpoint stands, or skips a finished run.

    Args:
      settings: of the run.
      corpus: to train on.
      folder: that gets the run.
      trace: steps to be written to folder/profile, for TensorBoard's profiler.

    Returns:
      The run's summary, which `done.json` holds too: steps, cells, tokens, their diversity,
      exposures, share of padding, losses, converged, parameters, model FLOPs, tokens trained on,
      rates, seconds in all and by what they went to, and goodput.

    Raises:
      ValueError: the folder holds a run of other settings, settings contradict the data, or a
        trace of a finished run is asked for.
      FloatingPointError: the loss is not finite; the step is named, and its cells are listed in
        `not_finite.json`.
      OSError: a checkpoint could not be written; those before are whole.
      hosts.Stopped: SIGTERM came; the state is saved.
    """
    _check_platform(settings.objective.implementation)
    fused_attention.check_platform(settings.devices.attention)
    if settings.model.length <= len(corpus.vocabulary.around):
        raise ValueError(
            f"model.length {settings.model.length} leaves no gene between <cls> and <eos>; raise it"
        )
    train = settings.train
    rows = subset(corpus, train)
    steps = train.total_steps(len(rows))
    classes = supervision.classes(settings.supervision, corpus)
    name = settings.hash(corpus.manifest["checksums"])
    hosts.one_by_one(lambda: _claim(folder, settings, name, corpus, classes))
    if hosts.all_agree((folder / DONE).exists()):
        if trace:
            raise ValueError(f"{folder}: the run is done; trace it in another --workdir")
        return _finished(folder, name)
    mesh = sharding.make_mesh(settings.devices, train.batch)
    with jax.set_mesh(mesh):
        sizes = tuple((column, len(of.names)) for column, of in classes.items())
        of_model = settings.program(), steps, len(corpus.vocabulary), sizes
        state = initial_state(np.uint32(train.init_seed), *of_model)
        source = _training_batches(corpus, rows, settings, steps, mesh, classes)
        held_out = _held_out_batches(corpus, settings, mesh)
        sizes = count_parameters(state.params)
        clock = _train(settings, name, source, state, held_out, sizes, steps, mesh, folder, trace)
    lengths = corpus.lengths(rows).clip(max=settings.model.length)
    summary = {
        "hash": name,
        "steps": steps,
        "cells": len(rows),
        "tokens": int(lengths.sum()),
        **diversity.of_subset(corpus, rows),
        "exposures": steps * train.batch,
        "padding": source.padding(),
        **convergence(read_rows(folder / METRICS), steps),
        **sizes,
        "cells_per_second": steps * train.batch / clock["seconds"],
        "tokens_per_second": clock["tokens_trained"] / clock["seconds"],
        **clock,
    }
    _write_json(folder / DONE, summary)
    hosts.wait("the run to be marked as done")
    return summary


def subset(corpus: Corpus, train: optimizer.TrainSettings) -> np.ndarray:
    """Rows of the cells that a run trains on, int64; `subsets.nested` says which and raises."""
    bins = sketch.bins(corpus) if train.scheme == "sketch" else None
    how = train.scheme, bins, train.spike, train.spike_share
    return subsets.nested(corpus.obs, train.cells or None, train.subset_seed, *how)


def run_and_step(given: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """A run's folder, and the step of a checkpoint: of RUN (None), or of RUN/checkpoints/STEP.

    Raises:
      ValueError: there is no run.
    """
    folder, step = given, None
    if given.parent.name == CHECKPOINTS and given.name.isdigit():
        folder, step = given.parents[1], int(given.name)
    if not (folder / SETTINGS).is_file():
        raise ValueError(
            f"{folder}: no {SETTINGS}; give the folder of a trained run (experiments.pretrain "
            f"makes WORKDIR/run, a study WORKDIR/runs/NAME), or one of its {CHECKPOINTS}/STEP"
        )
    return folder, step


def rows_trained_on(folder: pathlib.Path, corpus: Corpus) -> np.ndarray | None:
    """Rows of the cells that a run was trained on; None where that was another corpus, or where a
    file that the run's hash is of is gone.
    """
    held = json.loads((folder / SETTINGS).read_text())
    if "train" not in held:  # weights from elsewhere
        return None
    settings = RunSettings.from_config({**held, "devices": {}})
    try:
        name = settings.hash(corpus.manifest["checksums"])
    except FileNotFoundError:
        return None
    return subset(corpus, settings.train) if name == held["hash"] else None


def load_params(
    folder: pathlib.Path, model: ModelSettings, vocabulary: int, step: int | None = None
) -> dict:
    """Parameters of a run's checkpoint: of a step, or of the last."""
    shaped = initial_params(0, model, vocabulary)
    return checkpoint.restore_params(folder / CHECKPOINTS, shaped, step)


def convergence(rows: list[dict], steps: int) -> dict:
    """Final held-out loss, and whether the last tenth of the steps still lowered it by > 1 %.

    None where no loss was measured about a tenth before the end.
    """
    losses = {row["step"]: row["held_out/loss"] for row in rows if "held_out/loss" in row}
    before = [step for step in losses if 0.8 * steps <= step <= 0.9 * steps]
    if steps not in losses or not before:
        return {"held_out_loss": losses.get(steps), "converged": None}
    earlier, last = losses[max(before)], losses[steps]
    return {"held_out_loss": last, "converged": bool(earlier - last <= CONVERGED * abs(earlier))}


def _check_platform(implementation: str) -> None:
    platform = implementation.removeprefix("pallas_")
    if platform != implementation and platform != jax.default_backend():
        raise ValueError(
            f"objective.implementation {implementation!r} runs on {platform.upper()} alone, and "
            f"this is {jax.default_backend().upper()}; leave it at 'default'"
        )
    if implementation == "pallas_gpu":
        raise ValueError(
            "objective.implementation 'pallas_gpu' multiplies bfloat16 states, and has not been in "
            "a training step yet; leave it at 'default', or call kernels.cab.cab_loss yourself"
        )


def _claim(
    folder: pathlib.Path, settings: RunSettings, name: str, corpus: Corpus, classes: dict
) -> None:
    """Writes what the folder is for, or refuses one that is for something else."""
    path = folder / SETTINGS
    left = [part for part in (DONE, METRICS, CHECKPOINTS) if (folder / part).exists()]
    if path.exists():
        held = _read_json(path, "bring it back, or remove the run's folder")
        if held["hash"] == name:
            return
        if left:  # else nothing was trained, and another run may have the folder
            _refuse_other(folder, held, name, settings)
    elif left:
        raise ValueError(
            f"{folder} has {', '.join(left)} and no {SETTINGS} that says of which run; bring it "
            "back, or give another --workdir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    corpus.vocabulary.save(folder / VOCABULARY)
    content = {"hash": name, "corpus": str(corpus.folder), "vocabulary": corpus.vocabulary.hash}
    content |= {"commit": provenance.commit(), "packages": provenance.packages()}
    content |= {"classes": {column: of.names for column, of in classes.items()}}
    _write_json(path, content | settings.content())


def _finished(folder: pathlib.Path, name: str) -> dict:
    done = _read_json(folder / DONE, "remove it: the run goes on from its last checkpoint")
    _refuse_other(folder, done, name)
    return done


def _refuse_other(folder, held: dict, name: str, settings: RunSettings | None = None) -> None:
    if held["hash"] == name:
        return
    parts = json.loads(json.dumps(settings.content())) if settings else {}
    differences = [
        f"{part}.{field} was {held[part].get(field)!r}, now {value!r}"
        for part, fields in parts.items()
        for field, value in fields.items()
        if part in held and held[part].get(field) != value
    ]
    raise ValueError(
        f"{folder} holds another run (hash {held['hash']}, now {name}): "
        f"{'; '.join(differences) or 'of another corpus'}; give another --workdir or remove the "
        "folder"
    )


def _read_json(path: pathlib.Path, remedy: str) -> dict:
    try:
        content = json.loads(path.read_text())
        if "hash" in content:
            return content
        error = "it has no hash"
    except (ValueError, TypeError, IsADirectoryError) as found:
        error = found
    raise ValueError(f"{path} is damaged ({error}); {remedy}")


def _write_json(path: pathlib.Path, content: dict) -> None:
    if hosts.first():
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=1))
        partial.rename(path)


def _training_batches(
    corpus: Corpus, rows: np.ndarray, settings: RunSettings, steps: int, mesh: Mesh, classes: dict
) -> batches.Batches:
    train, pool = settings.train, corpus.obs["split"].to_numpy() == "pool"
    # Of the pool, not of the subset: runs of all sizes then share their programs.
    padded = padded_lengths(corpus.lengths(pool), settings.model.length, train.buckets)
    buckets = np.searchsorted(padded, corpus.lengths(rows).clip(max=padded[-1]))
    plan = Plan(len(rows), train.batch, train.init_seed, buckets.astype(np.uint16))
    draw = settings.masking, train.mask_seed, sharding.host_places(train.batch, mesh)
    draw += settings.model.encoding, classes
    return batches.Batches(corpus, rows, plan, steps, padded, *draw)


def _held_out_batches(corpus: Corpus, settings: RunSettings, mesh) -> list[MaskedCells]:
    rows = np.flatnonzero(corpus.obs["split"].to_numpy() == "held_out")
    ids = corpus.obs["cell_id"].to_numpy()[rows]
    rows = rows[subsets.order(ids, HELD_OUT_SEED)[: settings.train.held_out_cells]]
    parts = mesh.size // mesh.shape["tensor"]
    size = min(settings.train.batch, len(rows)) // parts * parts
    if not size:
        raise ValueError(f"{len(rows)} held-out cells are too few for {parts} devices")
    plan = Plan(len(rows), size, HELD_OUT_SEED)
    padded = (settings.model.length,)
    draw = settings.masking.of_scores(), HELD_OUT_SEED, sharding.host_places(size, mesh)
    draw += (settings.model.encoding,)
    source = batches.Batches(corpus, rows, plan, len(rows) // size, padded, *draw)
    found = [source[step] for step in range(len(source))]
    if not any((batch.labels_BxM >= 0).any() for batch in found):
        raise ValueError(
            f"masking.rate {settings.masking.rate} masks no position of {len(rows)} held-out "
            "cells; raise it"
        )
    return [sharding.shard_batch(batch, mesh) for batch in found]


def _train(settings, name, source, state, held_out, sizes, steps, mesh, folder, trace):
    """Order of a turn: measure, save, fetch, dispatch, and read what the step before left."""
    train, program, saved, start, clock = settings.train, settings.program(), {}, 0, Clock()
    seed = np.uint32(train.init_seed)
    with checkpoint.manager(folder / CHECKPOINTS) as checkpoints, hosts.stop_signal() as asked:
        with clock.spent("checkpoint"):
            restored = checkpoint.restore(checkpoints, name, state)
        if restored:
            start, state, saved = restored
            if hosts.first():
                print(f"{folder}: goes on from step {start} of {steps}", file=sys.stderr)
        iterator = batches.iterate(source, start)
        log = watch.Log(folder, start, steps, settings, source, sizes, saved, clock, trace)
        with contextlib.closing(log):
            if start == 0:
                log.held_out(0, state.params, held_out, program)
            for step in range(start + 1, steps + 1):
                with log.input():
                    batch = sharding.shard_batch(next(iterator), mesh)
                with log.step(step, batch, state):
                    state, logged = train_step(state, batch, seed, program, steps)
                log.train(step, logged)
                if train.measured(step, steps):
                    log.held_out(step, state.params, held_out, program)
                checkpoint.check(checkpoints)
                stopped = asked(step) and step < steps
                if stopped or step == steps or step % train.checkpoint_every == 0:
                    log.flush()  # a restart goes on after this step: its row must be on disk
                    with clock.spent("checkpoint", after=state):
                        checkpoint.save(checkpoints, name, step, state, log.clock())
                if stopped:
                    checkpoint.check(checkpoints, wait=True)
                    raise hosts.Stopped(
                        f"{folder} was asked to stop and is saved at step {step} of {steps}; the "
                        "same command goes on from there"
                    )
            with clock.spent("checkpoint"):
                checkpoint.check(checkpoints, wait=True)
    return log.clock()
