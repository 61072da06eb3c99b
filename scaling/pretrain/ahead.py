"""The training step compiled for accelerators that are not there, and the memory it takes."""

import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.pretrain import masking, optimizer, sharding, step


def compile_step(run: step.RunSettings, genes: int, topology: str) -> dict:
    """Compiles one step, its cells split over a TPU slice, and reads what the compiler reports.

    Args:
        run: settings of the run.
        genes: V, tokens of the vocabulary.
        topology: kind and shape of the slice, as "v5e:2x4".

    Returns:
        Bytes per device (temporaries, arguments), cells per device, the number of Pallas kernels
        in the program, seconds to compile.
    """
    devices = topologies.get_topology_desc(topology, "tpu").devices
    mesh = sharding.make_mesh(run.devices, run.train.batch, devices)
    size, length = run.train.batch, run.model.length
    empty, zeros = np.zeros((size, length), np.int32), np.zeros(size, np.uint32)
    batch = masking.mask_cells(empty, 0, zeros, zeros, genes, run.masking)
    params = jax.eval_shape(lambda: step.initial_params(0, run.model, genes))
    moments = jax.eval_shape(optimizer.optimizer(run.train, 1_000).init, params)
    state = step.State(params, moments, np.zeros((), np.int32))
    state = jax.tree.map(_placed, state, sharding.shardings(state, mesh))
    cells = NamedSharding(mesh, P(sharding.CELLS))
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.train_step.lower(
            state,
            jax.tree.map(lambda array: _placed(array, cells), batch),
            np.uint32(0),
            program=run.program(),
            steps=1_000,
        )
        memory = lowered.compile().memory_analysis()
    return {
        "topology": topology,
        "devices": len(devices),
        "cells_per_device": run.train.batch / len(devices),
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "kernels": lowered.as_text().count("tpu_custom_call"),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _placed(array, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)
