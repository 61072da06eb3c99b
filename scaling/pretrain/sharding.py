"""Devices -> a mesh, and where batches, parameters and moments lie on it."""

import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
ATTENTION = ("default", "blocked", "cudnn", "splash")
CELLS = ("data", "fsdp")  # the axes that a batch is cut along

# Path of a parameter -> mesh axes of its dimensions; the first pattern that matches decides. A
# dimension that its axes do not divide stays whole. The moments of a parameter lie as it does.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"embedding$", (None, "fsdp")),  # V x D; each device takes its part of V in the loss
    (r"positions$", (None, "fsdp")),  # L x D
    (r"(query|key|value)/kernel$", ("fsdp", "tensor", None)),  # D x H x D/H
    (r"(query|key|value)/bias$", ("tensor", None)),  # H x D/H
    (r"attention/out/kernel$", ("tensor", None, "fsdp")),  # H x D/H x D
    (r"expand/kernel$", ("fsdp", "tensor")),  # D x F
    (r"expand/bias$", ("tensor",)),  # F
    (r"contract/kernel$", ("tensor", "fsdp")),  # F x D
    (r"dense/kernel$", ("fsdp", None)),  # D x D
    (r"", ()),
)


@dataclasses.dataclass(frozen=True)
class DeviceSettings:
    """How the machine is used; the fields are those of `config.devices`. No result depends on it.

    Attributes:
      fsdp: devices that share one copy of the weights and gather them where they are used.
      tensor: devices that share the heads, the feed-forward width and the vocabulary.
      micro_batches: equal parts of a global batch, one after another; their gradients are added.
      attention: its implementation, a name of `ATTENTION`; see `fused_attention.attend`.
    """

    fsdp: int = 1
    tensor: int = 1
    micro_batches: int = 1
    attention: str = "default"

    def __post_init__(self):
        if min(self.fsdp, self.tensor, self.micro_batches) < 1:
            raise ValueError(f"numbers of devices.* must be at least 1: {self}")
        if self.attention not in ATTENTION:
            raise ValueError(f"devices.attention {self.attention!r}; one of {sorted(ATTENTION)}")


def make_mesh(settings: DeviceSettings, batch: int, devices: list | None = None) -> Mesh:
    """A mesh with the axes "data", "fsdp" and "tensor"; "data" takes the devices that are left.

    Args:
      settings: of the machine.
      batch: cells of a global batch.
      devices: to use; None takes all of all hosts.

    Raises:
      ValueError: the devices, or the batch, cannot be cut into as many equal parts.
    """
    devices = jax.devices() if devices is None else devices
    data, left = divmod(len(devices), settings.fsdp * settings.tensor)
    if left or not data:
        raise ValueError(
            f"{len(devices)} devices are no multiple of devices.fsdp {settings.fsdp} x "
            f"devices.tensor {settings.tensor}; choose a product that divides them"
        )
    parts = data * settings.fsdp * settings.micro_batches
    if batch % parts:
        raise ValueError(
            f"train.batch {batch} is no multiple of {parts} (devices that share it x "
            "devices.micro_batches); choose one that is"
        )
    shape = (data, settings.fsdp, settings.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def spec(path: str, shape: tuple[int, ...], sizes: dict[str, int]) -> P:
    """Where a parameter lies.

    Args:
      path: its name, "layer_0/expand/kernel".
      shape: of it.
      sizes: devices along each mesh axis that it may be cut along.
    """
    axes = next(axes for pattern, axes in RULES if re.search(pattern, path))
    named = zip(shape, axes, strict=False)
    return P(*(axis if axis in sizes and size % sizes[axis] == 0 else None for size, axis in named))


def specs(tree, sizes: dict[str, int]):
    """`spec` of each array of a tree of parameters, of moments or of shapes."""

    def of(path, leaf):
        return spec(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape, sizes)

    return jax.tree.map_with_path(of, tree)


def shardings(tree, mesh: Mesh):
    """Where each array of a tree lies on the mesh."""
    return jax.tree.map(lambda of: NamedSharding(mesh, of), specs(tree, dict(mesh.shape)))


def place(tree):
    """Inside a compiled program: parameters or moments, where the rules of the mesh want them.

    Without a mesh, as they are.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return jax.lax.with_sharding_constraint(tree, specs(tree, sizes)) if sizes else tree


def gather(params):
    """Inside a compiled step: the parameters whole again along "fsdp", still cut along "tensor".

    The gradients' way back is the reverse: they are added up and cut. Without a mesh, as they are.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if sizes.get("fsdp", 1) == sizes.get("tensor", 1) == 1:
        return params
    kept = {name: size for name, size in sizes.items() if name == "tensor"}
    return jax.lax.with_sharding_constraint(params, specs(params, kept))


def over_cells_and_heads(local, query, key, value, of_cells, of_all=None):
    """A function of attention, each device on its own cells and heads; without a mesh, as it is.

    Args:
      local: of the other arguments, in their order; its result lies as the query does.
      query, key, value: [B, L, H, D / H].
      of_cells: array whose first dimension is B.
      of_all: array that every device has whole, or None.
    """
    arrays = query, key, value, of_cells, of_all
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return local(*arrays)
    cells = tuple(name for name in CELLS if name in sizes)
    if len(query) % math.prod(sizes[name] for name in cells):
        cells = ()  # as where weights are made, of one cell
    heads = "tensor" if query.shape[2] % sizes.get("tensor", 1) == 0 and "tensor" in sizes else None
    lie = P(cells, None, heads, None)
    return jax.shard_map(
        local, in_specs=(lie, lie, lie, P(cells), P()), out_specs=lie,
        check_vma=False,  # a kernel does not say over which axes its outputs vary
    )(*arrays)


def host_places(batch: int, mesh: Mesh) -> np.ndarray:
    """Places of a global batch that this host's devices hold, ascending int64."""
    cells = NamedSharding(mesh, P(CELLS)).addressable_devices_indices_map((batch,))
    return np.unique([np.arange(batch)[part] for part in cells.values()])


def shard_batch(batch, mesh: Mesh):
    """Cuts a host's places of a global batch over its devices, each array along its first axis."""
    where = NamedSharding(mesh, P(CELLS))
    if jax.process_count() > 1:
        return jax.make_array_from_process_local_data(where, batch)
    # The same, quicker: small batches are handed over many times a second.
    return jax.tree.map(
        lambda array: jax.make_array_from_callback(array.shape, where, array.__getitem__), batch
    )
