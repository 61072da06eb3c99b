"""Config -> its training step compiled for TPUs that are not there, and the memory it takes.

python -m experiments.compile_ahead --config=configs/default.py --workdir=DIR --topology=v5e:2x4

Needs the extra "tpu" (libtpu), on any machine; TPU_SKIP_MDS_QUERY=1 keeps it from looking for one.
"""

import functools
import json
import pathlib
import time

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.launch import launch
from scaling.pretrain import loop, optimizer
from scaling.settings import Settings

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "kind and shape of the TPU slice")
GENES = flags.DEFINE_integer("genes", 25_426, "V, tokens of the vocabulary")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Compiles one step; returns what it found, which workdir/compiled.json holds too."""
    run, genes = settings.run, GENES.value
    devices = topologies.get_topology_desc(TOPOLOGY.value, "tpu").devices
    mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    every, cells = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    place = functools.partial(jax.tree.map, lambda a, s: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=s
    ))
    batch = {
        "tokens": np.zeros((run.train.batch, run.model.length), np.int32),
        "epoch": np.zeros(run.train.batch, np.int32),
        "cell": np.zeros(run.train.batch, np.uint32),
    }
    params = jax.eval_shape(lambda: loop.initial_params(0, run.model, genes))
    moments = jax.eval_shape(optimizer.optimizer(run.train, 1_000).init, params)
    state = loop.State(params, moments, np.zeros((), np.int32))
    seeds = {"init": np.uint32(0), "mask": np.uint32(0)}
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = loop.train_step.lower(
            place(state, jax.tree.map(lambda _: every, state)),
            place(batch, jax.tree.map(lambda _: cells, batch)),
            seeds, program=run.program(), steps=1_000,
        ).compile()
    memory = compiled.memory_analysis()
    found = {
        "topology": TOPOLOGY.value,
        "devices": len(devices),
        "cells_per_device": run.train.batch // len(devices),
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "kernels": compiled.as_text().count("tpu_custom_call"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "compiled.json").write_text(json.dumps(found, indent=1))
    return json.dumps(found, indent=1)


if __name__ == "__main__":
    launch(main)
