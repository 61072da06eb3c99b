"""Weights, a batch and seeds -> the next weights: all that is compiled; no file is touched."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import optax

from scaling.corpus.shards import file_checksum
from scaling.pretrain import (
    fused_attention,
    mam,
    masking,
    optimizer,
    predictions,
    sharding,
    supervision,
)
from scaling.pretrain.model import ModelSettings, RankEncoder
from scaling.pretrain.objectives import Loss, ObjectiveSettings, denominators, objective
from scaling.pretrain.sharding import DeviceSettings
from scaling.pretrain.supervision import SupervisionSettings


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that one pretraining run depends on, beside the corpus."""

    model: ModelSettings
    masking: masking.MaskingSettings
    objective: ObjectiveSettings
    train: optimizer.TrainSettings
    devices: DeviceSettings = DeviceSettings()
    supervision: SupervisionSettings = SupervisionSettings()

    def __post_init__(self):
        if self.train.buckets > 1 and self.objective.denominator == "published":
            raise ValueError(
                f"train.buckets is {self.train.buckets}, but objective.denominator=published "
                "depends on the padded length; give train.buckets=1 or "
                "objective.denominator=masked_pairs"
            )
        if (self.masking.strategy == "mam") != bool(self.model.latents):
            raise ValueError(
                f"masking.strategy is {self.masking.strategy!r} and model.latents "
                f"{self.model.latents}; MAM needs both: masking.strategy=mam and model.latents=128"
            )
        if (self.masking.strategy, self.model.encoding) == ("band", "counts"):
            raise ValueError(
                "masking.strategy=band masks by rank, and with model.encoding=counts genes stand "
                "in the vocabulary's order; give another of either"
            )
        model, named = self.model, self.devices.attention
        asked = jnp.dtype(model.dtype), model.width // model.heads, model.attention_dropout > 0
        fused_attention.check(named, *asked)

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping]) -> "RunSettings":
        """Reads the parts of a config of the fields of `configs/default.py` that a run needs.

        Raises:
          ValueError: a setting that contradicts itself or another.
        """
        config = {part: hashable(config.get(part, {})) for part in _PARTS}
        return cls(
            ModelSettings(**config["model"]),
            masking.MaskingSettings(**config["masking"]),
            ObjectiveSettings(**config["objective"]),
            optimizer.TrainSettings(**config["train"]),
            DeviceSettings(**config["devices"]),
            SupervisionSettings(**config["supervision"]),
        )

    def content(self) -> dict:
        """The settings that a result depends on, by part and name: all but the devices."""
        content = dataclasses.asdict(self)
        del content["devices"]
        return content

    def hash(self, checksums: dict) -> str:
        """Names a run's settings and, by its manifest's checksums, the corpus it reads; hex."""
        files = [self.masking.programs, self.masking.gene_names]
        if self.supervision.columns:
            files += [self.supervision.ontology, self.supervision.ontology_labels]
        read = [file_checksum(pathlib.Path(path)) for path in files if path]
        content = json.dumps([self.content(), checksums, masking.DRAWS, *read])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def program(self) -> "RunSettings":
        """The settings that a compiled step depends on: runs that differ in the rest share it."""
        rest = {"cells": 0, "subset_seed": 0, "init_seed": 0, "mask_seed": 0, "buckets": 1}
        rest |= {"scheme": "random", "spike": "", "spike_share": 0.0, "held_out_every": 0}
        rest |= {"checkpoint_every": 1, "log_every": 1, "held_out_cells": 1}
        return dataclasses.replace(self, train=dataclasses.replace(self.train, **rest))


_PARTS = "model", "masking", "objective", "train", "devices", "supervision"


def hashable(fields: Mapping) -> dict:
    """With tuples for the lists that JSON makes of them."""

    def of(value):
        return tuple(map(of, value)) if isinstance(value, list | tuple) else value

    return {name: of(value) for name, value in fields.items()}


@flax.struct.dataclass
class State:
    """What a step changes: the encoder, heads of classes beside it, Adam's moments of both."""

    params: dict
    optimizer: optax.OptState
    step: jax.Array
    heads: dict = flax.struct.field(default_factory=dict)


@functools.partial(jax.jit, static_argnames=("program", "steps"), donate_argnames="state")
def train_step(
    state: State, cells: masking.MaskedCells, seed: int, program: RunSettings, steps: int
):
    """One update; a pure function of its arguments. Returns (state, numbers to be logged).

    Args:
      state: is given up.
      cells: the batch.
      seed: init seed, of dropout.
      program: see `RunSettings.program`.
      steps: of the whole run.
    """
    model = RankEncoder(
        program.model, len(state.params["bias"]), program.devices.attention
    )
    dropout = jax.random.fold_in(jax.random.key(seed), state.step)
    if program.masking.strategy == "mam":
        of_cells = {"params": sharding.gather(state.params)}, cells.inputs_BxL, cells.values_BxL
        weights_BxHxZxL = model.apply(*of_cells, method="attention_of_latents")
        cells = mam.mask(cells, weights_BxHxZxL, model.vocabulary, program.masking)
    size = len(cells.inputs_BxL)
    of_batch = denominators(cells, program.objective)
    labelled = {column: cells.fits[column].any(1).sum() for column in state.heads}
    weights = program.supervision.weights

    def loss(trained, cells, place_B):
        params, heads = _apart(trained)
        params = sharding.gather(params)
        read = cells.inputs_BxL, cells.slots_BxM, place_B, cells.values_BxL
        hidden_BxMxD, sown = model.apply(
            {"params": params}, *read, rngs={"dropout": dropout}, mutable=["mam", "below"]
        )
        arrays = hidden_BxMxD, params["embedding"], params["bias"]
        known_BxV = masking.known_genes(cells, model.vocabulary)
        sums, out = objective(*arrays, cells, known_BxV, program.objective)
        of_cells = predictions.cell_metrics(
            out.top_p_BxM, cells.labels_BxM, cells.hidden_BxM, known_BxV
        )
        logged = {
            "sums": sums,
            "cells": (of_cells.pop("slots") > 0).sum(),
            "of_cells": {name: value_B.sum() for name, value_B in of_cells.items()},
            "surplus": cells.surplus_B.sum(),
        }
        positions, pairs = of_batch
        share = sums._replace(positions=positions, pairs=pairs)
        squares = jax.tree.leaves(sown.get("mam", {}))
        added = sum(square_B.sum() for square_B in squares) * mam.PENALTY / size
        if heads:
            [states_BxLxD] = sown["below"]["states"]
            logged["classes"] = supervision.sums(
                heads, states_BxLxD, cells.inputs_BxL, cells.fits
            )
            for column, of_column in logged["classes"].items():
                mean = of_column["cross_entropy"] / jnp.maximum(labelled[column], 1)
                added += weights[column] * mean
        return share.value(program.objective) + added, logged

    gradients = jax.value_and_grad(loss, has_aux=True)
    parts = program.devices.micro_batches
    places_B, trained = jnp.arange(size, dtype=jnp.int32), _together(state.params, state.heads)
    if parts == 1:
        (value, logged), grads = gradients(trained, cells, places_B)
    else:
        ((value, logged), grads) = _added_up(gradients, trained, (cells, places_B), parts)
    adamw = optimizer.optimizer(program.train, steps, program.model.ratio)
    update, moments = adamw.update(grads, state.optimizer, trained)
    logged |= {"loss": value, "gradient_norm": optax.tree.norm(grads)}
    if state.heads:
        logged["labelled"] = labelled
    logged |= {"param_norms": group_norms(trained), "gradient_norms": group_norms(grads)}
    params, heads = _apart(optax.apply_updates(trained, update))
    return State(params, moments, state.step + 1, heads), logged


def _together(params: dict, heads: dict) -> dict:
    """All that is trained, in one tree; the encoder's own where there are no classes."""
    return params | ({"classes": heads} if heads else {})


def _apart(trained: dict) -> tuple[dict, dict]:
    """Parameters of the encoder, and heads of classes."""
    params = {name: part for name, part in trained.items() if name != "classes"}
    return params, trained.get("classes", {})


def group_norms(tree: dict) -> dict[str, jax.Array]:
    """Euclidean norms of parameters or gradients: embedding, positions, each layer_k, head.

    The norm and the token type after the embedding are of its group; all behind the layers, the
    bias of the genes too, is of the head. Heads of classes are a group, where there are any.
    """
    of = {"token_type": "embedding", "norm": "embedding"}
    of |= dict.fromkeys(("dense", "head_norm", "bias"), "head")
    groups = {}
    for name, part in tree.items():
        groups.setdefault(of.get(name, name), []).append(part)
    return {name: optax.tree.norm(parts) for name, parts in groups.items()}


def _added_up(gradients, params, of_cells, parts: int):
    """Sums over the parts of a batch, computed one after another.

    Every parts-th cell makes a part, so that each device has its share of each.
    """

    def cut(array):
        return jnp.swapaxes(array.reshape(-1, parts, *array.shape[1:]), 0, 1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, gradients(params, *part)), None

    of_parts = jax.tree.map(cut, of_cells)
    shapes = jax.eval_shape(gradients, params, *jax.tree.map(lambda array: array[0], of_parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, of_parts)[0]


@functools.partial(jax.jit, static_argnames="program")
def held_out_sums(params: dict, cells: masking.MaskedCells, program: RunSettings) -> Loss:
    """Loss parts of held-out cells, without dropout."""
    model = RankEncoder(program.model, len(params["bias"]), program.devices.attention)
    params = sharding.gather(params)
    read = cells.inputs_BxL, cells.slots_BxM, None, cells.values_BxL
    hidden_BxMxD = model.apply({"params": params}, *read)
    arrays = hidden_BxMxD, params["embedding"], params["bias"]
    known_BxV = masking.known_genes(cells, model.vocabulary)
    return objective(*arrays, cells, known_BxV, program.objective)[0]


@functools.partial(jax.jit, static_argnames=("program", "steps", "vocabulary", "classes"))
def initial_state(
    seed: int,
    program: RunSettings,
    steps: int,
    vocabulary: int,
    classes: tuple[tuple[str, int], ...] = (),
) -> State:
    """The state before the first step, on the mesh that is set; no device holds more than its part.

    Args:
      seed: init seed.
      program: see `RunSettings.program`.
      steps: of the whole run.
      vocabulary: V.
      classes: number of them, for each supervised column.
    """
    params = sharding.place(initial_params(seed, program.model, vocabulary))
    key = jax.random.fold_in(jax.random.key(seed), 1)
    heads = supervision.initial_heads(key, dict(classes), program.model.width)
    adamw = optimizer.optimizer(program.train, steps)
    moments = sharding.place(adamw.init(_together(params, heads)))
    return State(params, moments, jnp.int32(0), heads)


@functools.partial(jax.jit, static_argnames=("model", "vocabulary"))
def initial_params(seed: int, model: ModelSettings, vocabulary: int) -> dict:
    """Weights before any training, from the init seed."""
    tokens, slots = jnp.zeros((1, model.length), jnp.int32), jnp.zeros((1, 1), jnp.int32)
    values = None if model.encoding == "ranks" else jnp.zeros(tokens.shape)
    encoder = RankEncoder(model, vocabulary, "blocked")
    return encoder.init(jax.random.key(seed), tokens, slots, None, values)["params"]
