"""Devices -> a mesh, and where batches and state lie on it."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def data_mesh(batch: int) -> Mesh:
    """A mesh with the one axis "data" over all devices of all hosts.

    Raises:
      ValueError: the batch cannot be cut into as many equal parts.
    """
    devices = jax.device_count()
    if batch % devices:
        raise ValueError(
            f"train.batch {batch} is no multiple of the {devices} devices; choose one that is"
        )
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def replicate(tree, mesh: Mesh):
    """Puts a whole copy of every array on each device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Cuts the host's part of a global batch over its devices, along the first axis."""
    rows = NamedSharding(mesh, P("data"))
    return {k: jax.make_array_from_process_local_data(rows, v) for k, v in batch.items()}
