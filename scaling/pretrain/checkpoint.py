"""State and clock <-> Orbax checkpoints that are whole, of this run, and unchanged on disk."""

import contextlib
import pathlib
import shutil
import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scaling.pretrain import hosts

KEPT = 2  # the last good one stays while the next is written
UNREADABLE = ".unreadable"  # what a checkpoint is called that was skipped


@contextlib.contextmanager
def manager(folder: pathlib.Path, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """Checkpoints of a run, written in the background; a half-written one is never seen.

    Args:
      folder: of the checkpoints.
      read_only: leaves the folder as it is, which a run may be writing to; otherwise what a save
        that was cut left behind is removed.

    Raises:
      OSError: at its end too, where one could not be written.
    """
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT), read_only=read_only
    )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder, and checkpoints want one; remove or rename it")
    if not read_only:
        _remove_half_written(folder.resolve())
    checkpoints = ocp.CheckpointManager(folder.resolve(), options=options)
    try:
        yield checkpoints
        check(checkpoints, wait=True)
    finally:
        with contextlib.suppress(Exception):  # a save that failed was told above
            checkpoints.close()


def save(checkpoints: ocp.CheckpointManager, run: str, step: int, state, clock: dict) -> None:
    """Saves all that the rest of the run depends on, after `step` steps.

    The place in the data is the step itself: every batch is a function of its number.

    Args:
      checkpoints: of the run.
      run: its hash.
      step: steps taken.
      state: with the fields params, optimizer, step and heads.
      clock: seconds trained so far, by name.

    Raises:
      OSError: this one, or the one before, could not be written.
    """
    parts = {"params": state.params, "optimizer": _without_params(state)}
    sums = {name: np.asarray(fingerprint(part)).tolist() for name, part in parts.items()}
    items = {name: ocp.args.StandardSave(part) for name, part in parts.items()}
    about = ocp.args.JsonSave({"run": run, "fingerprints": sums, "clock": clock})
    with _told(checkpoints):
        checkpoints.save(step, args=ocp.args.Composite(about=about, **items), force=True)


def save_params(folder: pathlib.Path, run: str, params) -> None:
    """Saves parameters alone, as of step 0: a run that can be read and not gone on with.

    Args:
      folder: of the checkpoints.
      run: its hash.
      params: of the encoder.
    """
    sums = {"params": np.asarray(fingerprint(params)).tolist()}
    about = ocp.args.JsonSave({"run": run, "fingerprints": sums, "clock": {}})
    args = ocp.args.Composite(about=about, params=ocp.args.StandardSave(params))
    with manager(folder) as checkpoints, _told(checkpoints):
        checkpoints.save(0, args=args, force=True)


def check(checkpoints: ocp.CheckpointManager, wait: bool = False) -> None:
    """Raises an OSError where a save in the background went wrong; `wait` lets it end first."""
    with _told(checkpoints):
        checkpoints.wait_until_finished() if wait else checkpoints.check_for_errors()


def restore(checkpoints: ocp.CheckpointManager, run: str, state):
    """Latest (step, state, clock) that is whole; None where nothing was saved.

    Those that are damaged, or another run's, are named on stderr, set aside and skipped.

    Args:
      checkpoints: of the run.
      run: its hash.
      state: a state of the same shapes and placement, whose values are replaced.

    Raises:
      ValueError: there are checkpoints, and none can be read.
    """
    skipped, parts = [], {"params": state.params, "optimizer": _without_params(state)}
    for step in sorted(checkpoints.all_steps(), reverse=True):
        try:
            saved, clock = _read(checkpoints, step, run, parts)
            fault = None
        except Exception as error:  # of many kinds: what is read may be anything
            fault = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if hosts.all_agree(fault is None):
            _set_aside(checkpoints, skipped, step)
            return step, state.replace(params=saved["params"], **saved["optimizer"]), clock
        skipped.append((step, fault or "another process could not read it"))
    if skipped:
        raise ValueError(
            f"{checkpoints.directory}: no checkpoint can be read ({_listed(skipped)}); bring one "
            "back, or remove the run's folder to train anew"
        )
    return None


def restore_params(folder: pathlib.Path, params, step: int | None = None):
    """Parameters of a checkpoint, shaped as the given ones, whole on this process.

    Args:
      folder: of all of a run's checkpoints.
      params: of the shapes that they have.
      step: of the checkpoint; None is the latest.

    Raises:
      ValueError: the folder holds no checkpoint, or none of that step, or it is damaged.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no checkpoints; train the run with experiments.pretrain")
    one_of_each = {device.process_index: device for device in reversed(jax.devices())}
    whole = NamedSharding(Mesh([*one_of_each.values()], "processes"), PartitionSpec())
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
    with manager(folder, read_only=True) as checkpoints:
        steps = checkpoints.all_steps()
        if not steps:
            raise ValueError(f"{folder}: no finished checkpoint; run experiments.pretrain again")
        step = max(steps) if step is None else step
        if step not in steps:
            raise ValueError(f"{folder}: no checkpoint of step {step}; there are {sorted(steps)}")
        try:
            saved, _ = _read(checkpoints, step, None, {"params": wanted})
        except Exception as error:  # of many kinds: what is read may be anything
            raise ValueError(
                f"{folder / str(step)} cannot be read ({str(error).splitlines()[0][:300]}); remove "
                "the run's done.json and train again: it goes on from the checkpoint before"
            ) from error
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), saved["params"])


@jax.jit
def fingerprint(tree) -> jax.Array:
    """One uint32 of each array, which a change of any one word changes, on any mesh the same.

    The words are added up modulo 2^32, each times an odd number of its place.
    """

    def of(leaf):
        words = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        place, stride = jnp.zeros(leaf.shape, jnp.uint32), 1
        for axis in reversed(range(leaf.ndim)):
            place += jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis) * jnp.uint32(stride)
            stride *= leaf.shape[axis]
        return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)

    return jnp.stack([of(leaf) for leaf in jax.tree.leaves(tree)])


def _read(checkpoints, step: int, run: str | None, parts: dict):
    """The parts of a checkpoint and its clock; raises where it is not what was saved."""
    shapes = {name: jax.tree.map(_shape, part) for name, part in parts.items()}
    items = {name: ocp.args.StandardRestore(part) for name, part in shapes.items()}
    args = ocp.args.Composite(about=ocp.args.JsonRestore(), **items)
    saved = checkpoints.restore(step, args=args)
    about = saved["about"]
    if run not in (None, about["run"]):
        raise ValueError(f"it is of another run, {about['run']}")
    for name in parts:
        if np.asarray(fingerprint(saved[name])).tolist() != about["fingerprints"][name]:
            raise ValueError(f"its {name} have changed since they were saved")
    if "optimizer" in saved and saved["optimizer"]["step"] != step:
        raise ValueError(f"it is of step {saved['optimizer']['step']}")
    return saved, about["clock"]


def _remove_half_written(folder: pathlib.Path) -> None:
    # not by the manager itself, whose background thread may outlive it and meet the next one's
    if hosts.first() and folder.is_dir():
        for half in ocp.utils.tmp_checkpoints(folder):
            half.get().rmtree(missing_ok=True)
    hosts.wait("half-written checkpoints to be removed")


def _set_aside(checkpoints, skipped: list[tuple[int, str]], step: int) -> None:
    if not skipped:
        return
    folder = pathlib.Path(checkpoints.directory)
    if hosts.first():
        print(
            f"{folder}: skipped, and now called *{UNREADABLE}: {_listed(skipped)}; going on from "
            f"step {step}", file=sys.stderr,
        )
        for number, _ in skipped:
            aside = folder / f"{number}{UNREADABLE}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / str(number)).rename(aside)
    hosts.wait("checkpoints to be set aside")
    checkpoints.reload()


def _listed(skipped: list[tuple[int, str]]) -> str:
    return "; ".join(f"step {step}: {fault}" for step, fault in skipped)


@contextlib.contextmanager
def _told(checkpoints) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # TensorStore's of a full disk is a ValueError
        raise OSError(
            f"{checkpoints.directory}: a checkpoint could not be written "
            f"({str(error).splitlines()[0][:300]}); those before are whole: make room and run the "
            "same command again"
        ) from error


def _without_params(state) -> dict:
    of_state = {"optimizer": state.optimizer, "step": state.step}
    return of_state | ({"heads": state.heads} if state.heads else {})


def _shape(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
