"""State, data position and clock <-> one Orbax checkpoint; evaluation reads params."""

import pathlib

import grain
import jax
import orbax.checkpoint as ocp
from grain.checkpoint import CheckpointRestore, CheckpointSave

KEPT = 2  # the last good one stays while the next is written


def manager(folder: pathlib.Path) -> ocp.CheckpointManager:
    """Checkpoints of a run, written in the background; a half-written one is never seen."""
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(KEPT), cleanup_tmp_directories=True
    )
    return ocp.CheckpointManager(folder.resolve(), options=options)


def save(checkpoints, step: int, state, iterator: grain.DatasetIterator, clock: dict) -> None:
    """Saves all that the rest of the run depends on, after `step` steps.

    Args:
      checkpoints: of the run.
      step: steps taken.
      state: with the fields params, optimizer and step.
      iterator: data iterator.
      clock: seconds trained so far, by name.
    """
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave(_without_params(state)),
        data=CheckpointSave(iterator),
        clock=ocp.args.JsonSave(clock),
    )
    checkpoints.save(step, args=items, force=True)


def restore(checkpoints, state, iterator: grain.DatasetIterator):
    """Latest (step, state, clock), the iterator moved to its place; None where nothing is saved.

    Args:
      checkpoints: of the run.
      state: a state of the same shapes and placement, whose values are replaced.
      iterator: data iterator of the same subset.
    """
    step = checkpoints.latest_step()
    if step is None:
        return None
    items = ocp.args.Composite(
        params=ocp.args.StandardRestore(_shapes(state.params)),
        optimizer=ocp.args.StandardRestore(_shapes(_without_params(state))),
        data=CheckpointRestore(iterator),
        clock=ocp.args.JsonRestore(),
    )
    saved = checkpoints.restore(step, args=items)
    return step, state.replace(params=saved["params"], **saved["optimizer"]), saved["clock"]


def restore_params(folder: pathlib.Path, params):
    """Parameters of the latest checkpoint, shaped and placed as the given ones.

    Raises:
      ValueError: the folder holds no checkpoint.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no checkpoints; train the run with experiments.pretrain")
    with manager(folder) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise ValueError(f"{folder}: no finished checkpoint; run experiments.pretrain again")
        wanted = ocp.args.Composite(params=ocp.args.StandardRestore(_shapes(params)))
        return checkpoints.restore(step, args=wanted)["params"]


def _without_params(state) -> dict:
    return {"optimizer": state.optimizer, "step": state.step}


def _shapes(tree):
    def shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(shape, tree)
