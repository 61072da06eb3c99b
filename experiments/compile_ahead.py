"""Config -> its training step compiled for TPUs that are not there, and the memory it takes.

python -m experiments.compile_ahead --config=configs/default.py --workdir=DIR --topology=v5e:2x4

Needs the extra "tpu" (libtpu), on any machine; TPU_SKIP_MDS_QUERY=1 keeps it from looking for one.
"""

import importlib.util
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
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not installed; run: pip install --editable '.[tpu]'")
    run, genes = settings.run, GENES.value
    devices = topologies.get_topology_desc(TOPOLOGY.value, "tpu").devices
    mesh = jax.sharding.Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    every, cells = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
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
        lowered = loop.train_step.lower(
            _on(every, state), _on(cells, batch),
            seeds, program=run.program(), steps=1_000,
        )
        memory = lowered.compile().memory_analysis()
    found = {
        "topology": TOPOLOGY.value,
        "devices": len(devices),
        "cells_per_device": run.train.batch // len(devices),
        "temporary_bytes_per_device": memory.temp_size_in_bytes,
        "argument_bytes_per_device": memory.argument_size_in_bytes,
        "kernels": lowered.as_text().count("tpu_custom_call"),
        "seconds": round(time.perf_counter() - start, 1),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "compiled.json").write_text(json.dumps(found, indent=1))
    return json.dumps(found, indent=1)


def _on(sharding: NamedSharding, tree):
    """Shapes and types of a tree's arrays, all placed alike."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree
    )


if __name__ == "__main__":
    launch(main)
