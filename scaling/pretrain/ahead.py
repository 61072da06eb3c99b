"""Settings, a TPU slice that is not there -> its compiled step: memory, FLOPs, collectives."""

import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from scaling.pretrain import collectives, flops, masking, optimizer, sharding, step

# Bytes of a chip's memory (cloud.google.com/tpu/docs, the page of each version), by device_kind.
MEMORY = {"TPU v4": 32e9, "TPU v5 lite": 16e9, "TPU v5": 95e9, "TPU v6 lite": 32e9}


def compile_step(run: step.RunSettings, genes: int, topology: str) -> dict:
    """Compiles one step, its cells split over a TPU slice, and reads what the compiler reports.

    Heads of `supervision`, whose classes a corpus names, are left out.

    Args:
        run: settings of the run.
        genes: V, tokens of the vocabulary.
        topology: kind and shape of the slice, as "v5e:2x4".

    Returns:
        Of the slice: topology, devices, kind. Of a device: its cells, the bytes of arguments,
        temporaries, outputs that do not take the place of arguments, and of the program; their
        sum, the memory there is, and whether it fits. Model FLOPs of a step (see `flops`), in all
        and per device, and what the compiler counts on a device, which takes a loop's body once.
        Collectives (see `collectives`; None where the compiler cannot write down its program), the
        number of Pallas kernels, seconds to compile. Where the compiler itself refuses for want of
        memory: its message as `refused`, and no bytes.

    Raises:
        ValueError: there is no such slice, or the batch cannot be cut over it.
    """
    devices = _devices(topology)
    mesh = sharding.make_mesh(run.devices, run.train.batch, devices)
    size, length = run.train.batch, run.model.length
    empty, zeros = np.zeros((size, length), np.int32), np.zeros(size, np.uint32)
    batch = masking.mask_cells(empty, 0, zeros, zeros, genes, run.masking)
    if run.model.encoding != "ranks":
        batch = batch._replace(values_BxL=np.zeros((size, length), np.float32))
    params = jax.eval_shape(lambda: step.initial_params(0, run.model, genes))
    moments = jax.eval_shape(optimizer.optimizer(run.train, 1_000).init, params)
    state = step.State(params, moments, np.zeros((), np.int32))
    state = jax.tree.map(_placed, state, sharding.shardings(state, mesh))
    cells = NamedSharding(mesh, P(sharding.CELLS))
    sizes = length, batch.slots_BxM.shape[1], genes
    work = size * flops.of_cell(run.model, *sizes).model
    found = {
        "topology": topology,
        "devices": len(devices),
        "kind": devices[0].device_kind,
        "cells_per_device": size / len(devices),
        "memory_bytes_per_device": MEMORY.get(devices[0].device_kind),
        "model_flops": work,
        "model_flops_per_device": work / len(devices),
    }
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = step.train_step.lower(
            state,
            jax.tree.map(lambda array: _placed(array, cells), batch),
            np.uint32(0),
            program=run.program(),
            steps=1_000,
        )
        found["kernels"] = lowered.as_text().count("tpu_custom_call")
        try:
            found |= _read(lowered.compile(), found["memory_bytes_per_device"])
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            found |= {"fits": False, "refused": str(error).splitlines()[0]}
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def table(found: dict) -> str:
    """What `compile_step` found, as lines of text."""
    fits = {True: "fits", False: "DOES NOT FIT", None: "memory of a device not known"}
    lines = [
        f"{found['topology']}: {found['devices']} x {found['kind']}, "
        f"{found['cells_per_device']:g} cells per device; compiled in {found['seconds']} s",
        f"memory per device: {fits[found['fits']]}",
    ]
    if "refused" in found:
        return "\n".join([*lines, f"  {found['refused']}"])
    names = "argument", "temporary", "output", "program", "needed"
    rows = [(name, found[f"{name}_bytes_per_device"]) for name in names]
    if found["memory_bytes_per_device"]:
        rows.append(("there is", found["memory_bytes_per_device"]))
        lines[1] += f", {found['share_of_memory']:.1%} needed"
    lines += [f"  {name:12} {size / 1e9:10.3f} GB" for name, size in rows]
    lines += [
        "FLOPs of a step:",
        f"  model        {found['model_flops']:10.3e}, {found['model_flops_per_device']:.3e} per "
        "device",
        f"  compiler     {found['compiler_flops_per_device']:10.3e} per device, the body of a loop "
        "counted once",
        "collectives of a step, per device, those in a loop once where its turns are not known:",
    ]
    if found["collectives"] is None:
        lines.append("  not known: the compiler could not write down this program")
    lines += [
        f"  {kind:20} {sums['count']:5} {sums['bytes'] / 1e6:12.3f} MB"
        for kind, sums in (found["collectives"] or {}).items()
    ]
    if found["collectives"] == {}:
        lines.append("  none")
    return "\n".join([*lines, f"Pallas kernels: {found['kernels']}"])


def _devices(topology: str) -> list:
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"--topology={topology}: {str(error).splitlines()[0]}; give kind and shape of a slice, "
            "as v5e:2x4, v5p:4x4x4 or v6e:2x4"
        ) from error


def _read(compiled: jax.stages.Compiled, memory: float | None) -> dict:
    """What the compiler reports of a program, and whether it fits into so many bytes."""
    of = compiled.memory_analysis()
    sizes = {
        "argument": of.argument_size_in_bytes,
        "temporary": of.temp_size_in_bytes,
        "output": of.output_size_in_bytes - of.alias_size_in_bytes,
        "program": of.generated_code_size_in_bytes,
    }
    needed = sum(sizes.values())
    return {
        **{f"{name}_bytes_per_device": size for name, size in sizes.items()},
        "needed_bytes_per_device": needed,
        "share_of_memory": memory and needed / memory,
        "fits": memory and needed <= memory,
        "compiler_flops_per_device": compiled.cost_analysis()["flops"],
        "collectives": _collectives(compiled),
    }


def _collectives(compiled: jax.stages.Compiled) -> dict | None:
    try:
        return collectives.count(compiled.as_text())
    except jax.errors.JaxRuntimeError:  # the TPU compiler cannot write down all of its programs
        return None


def _placed(array, where: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)
