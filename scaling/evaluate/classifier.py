"""A pretrained encoder and cells with labels -> a fine-tuned classifier, and its logits."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from scaling.corpus.encodings import Cells
from scaling.corpus.shards import Corpus
from scaling.corpus.vocabulary import Vocabulary
from scaling.evaluate import tuning
from scaling.geneformer import files
from scaling.pretrain import sharding
from scaling.pretrain.model import Dropout, ModelSettings, RankEncoder
from scaling.pretrain.plan import Plan, padded_lengths

CELLS_AT_ONCE = 64  # whose logits are computed


class Classifier(nn.Module):
    """Encoder, and logits of classes from its last layer's states.

    Attributes:
      model, vocabulary: of the encoder.
      special: tokens that are no genes.
      classes: their number.
      pooling: "mean", a cell's logits from the mean over its genes' positions; "first", from the
        first position through a dense layer and tanh, as BERT pools (Devlin et al. 2019); "none",
        logits of every position.
      dropout: of what the logits are read from.
    """

    model: ModelSettings
    vocabulary: int
    special: int
    classes: int
    pooling: str
    dropout: float

    def setup(self):
        normal = nn.initializers.normal(0.02)
        self.encoder = RankEncoder(self.model, self.vocabulary)
        self.pooler = nn.Dense(self.model.width, kernel_init=normal)
        self.drop = Dropout(self.dropout)
        self.logits = nn.Dense(self.classes, kernel_init=normal)

    def __call__(self, cells: Cells, place_B: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, classes], or [B, L, classes]; `RankEncoder` tells of the place."""
        tokens_BxL = cells.tokens_BxL
        states_BxLxD = self.encoder.encode(tokens_BxL, place_B, cells.values_BxL)[-1]
        if self.pooling == "none":
            return self.logits(self.drop(states_BxLxD, place_B))
        if self.pooling == "first":
            pooled_Bx1xD = jnp.tanh(self.pooler(states_BxLxD[:, :1]))
        else:
            real_BxLx1 = (tokens_BxL >= self.special)[..., None]
            total_Bx1xD = jnp.where(real_BxLx1, states_BxLxD, 0.0).sum(1, keepdims=True)
            pooled_Bx1xD = total_Bx1xD / jnp.maximum(real_BxLx1.sum(1, keepdims=True), 1)
        return self.logits(self.drop(pooled_Bx1xD, place_B))[:, 0]


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Cells of a corpus, and what is known of them.

    Attributes:
      corpus: that holds them.
      rows: of them, int64 [N].
      classes: number of the class of each cell, int32 [N], or of each token, int32 [V]; -1: none.
    """

    corpus: Corpus
    rows: np.ndarray
    classes: np.ndarray

    def batch(
        self, chosen: np.ndarray, length: int, size: int, encoding: str, of_tokens: bool
    ) -> tuple[Cells, np.ndarray]:
        """So many cells, the last empty, and their labels [size] or [size, length], padded."""
        cells = self.corpus.inputs(self.rows[chosen], length, encoding)
        labels = self.classes[cells.tokens_BxL if of_tokens else chosen].astype(np.int32)
        more = [(0, size - len(chosen))] + [(0, 0)] * of_tokens
        return _filled_up(cells, size), np.pad(labels, more, constant_values=-1)


def train(
    encoder: dict, module: Classifier, settings: tuning.FinetuneSettings, cells: Labelled,
    devices: list | None = None,
) -> tuple[dict, list[float]]:
    """Fine-tunes by AdamW on the mean cross-entropy of a batch's labels.

    The parameters of the masked-gene head are not read, and frozen ones are never updated nor
    decayed. Every epoch is its own order of all cells. One learning rate holds for all parameters,
    whatever `model.base_width`.

    Args:
      encoder: parameters of a RankEncoder.
      module: the classifier; with pooling "none" tokens are labelled, else cells.
      settings: of the fine-tuning.
      cells: to train on.
      devices: that share each batch; None takes all of this process. No result depends on them
        beyond rounding.

    Returns:
      Parameters of the module, and the loss of each step.

    Raises:
      ValueError: more frozen layers than there are, or a run that ends before its warm-up.
      FloatingPointError: the loss is not finite.
    """
    frozen_names = tuning.frozen(settings, module.model)
    steps, of_tokens = settings.steps(len(cells.rows)), module.pooling == "none"
    start = _initial(settings.seed, module)
    start["encoder"] = {name: encoder[name] for name in start["encoder"]}
    flat = flatten_dict(start)
    still = {path: leaf for path, leaf in flat.items() if path[:2] in frozen_names}
    moving = {path: leaf for path, leaf in flat.items() if path not in still}
    lengths = cells.corpus.lengths(cells.rows).clip(max=module.model.length)
    padded = padded_lengths(lengths, module.model.length, settings.buckets)
    buckets = np.searchsorted(padded, lengths)
    plan = Plan(len(cells.rows), settings.batch, settings.seed, buckets.astype(np.uint16))
    mesh, size = _mesh(settings.batch, devices)
    losses = []
    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, PartitionSpec())
        still, moving = jax.device_put((still, moving), whole)
        moments = jax.device_put(tuning.optimizer(settings, steps).init(moving), whole)
        program = settings.program()
        for step in tqdm(range(steps), desc="fine-tuning", unit="steps"):
            chosen, _ = plan.at(step)
            length, encoding = padded[buckets[chosen].max()], module.model.encoding
            batch = cells.batch(chosen, length, size, encoding, of_tokens)
            batch = sharding.shard_batch(batch, mesh)
            draw = np.uint32(settings.seed), np.uint32(step)
            moving, moments, loss = _step(
                moving, moments, still, batch, draw, module, program, steps
            )
            losses.append(loss)
            if not np.isfinite(losses[step - 1]):  # of the step before: this one is under way
                break
    losses = [float(loss) for loss in losses]
    if not np.isfinite(losses).all():
        raise FloatingPointError(
            f"the loss of step {int(np.argmin(np.isfinite(losses)))} of {steps} is not finite; "
            "lower finetune.learning_rate, or lengthen finetune.warmup"
        )
    return unflatten_dict({**still, **moving}), losses


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the labels from 0 on; 0 where there is none.

    Args:
      logits: [..., classes].
      labels: int32 [...], -1: none.
    """
    counted = labels >= 0
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.where(counted, each, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def export(
    params: dict, module: Classifier, classes: tuple[str, ...], vocabulary: Vocabulary,
    folder: pathlib.Path,
) -> None:
    """Writes a classifier as files that the transformers library loads; see `not_written`.

    Args:
      params, module: the classifier.
      classes: names, in the order of the logits.
      vocabulary: of the tokens.
      folder: gets config.json, model.safetensors and vocabulary.json.
    """
    if not not_written(module.pooling, module.model):
        kind = {"first": "cells", "none": "genes"}[module.pooling]
        weights = files.Weights(module.model, module.vocabulary, kind, params, classes)
        files.write(weights, folder, vocabulary)


def not_written(pooling: str, model: ModelSettings) -> str:
    """Why the files of a classifier are not written: BERT has not its like; "" where it has."""
    if pooling == "mean":
        return "BERT has no place for finetune.pooling=mean; give finetune.pooling=first"
    if not files.has_place(model):
        of = f"model.encoding={model.encoding} and model.latents={model.latents}"
        return f"BERT has no place for {of}; fine-tune a run with ranks and without latents"
    return ""


@functools.partial(jax.jit, static_argnames=("module", "settings", "steps"))
def _step(moving, moments, still, batch, draw, module: Classifier, settings, steps: int):
    cells, labels = batch
    rngs = {"dropout": jax.random.fold_in(jax.random.key(draw[0]), draw[1])}

    def loss(moving):
        params = unflatten_dict({**still, **moving})
        places_B = jnp.arange(len(cells.tokens_BxL), dtype=jnp.int32)
        logits = module.apply({"params": params}, cells, places_B, rngs=rngs)
        return cross_entropy(logits, labels)

    value, grads = jax.value_and_grad(loss)(moving)
    update, moments = tuning.optimizer(settings, steps).update(grads, moments, moving)
    return optax.apply_updates(moving, update), moments, value


@functools.partial(jax.jit, static_argnames="module")
def _initial(seed, module: Classifier) -> dict:
    tokens = jnp.zeros((1, module.model.length), jnp.int32)
    values = None if module.model.encoding == "ranks" else jnp.zeros(tokens.shape)
    return module.init(jax.random.key(seed), Cells(tokens, values))["params"]


@functools.partial(jax.jit, static_argnames="module")
def _logits(params: dict, cells: Cells, module: Classifier) -> jax.Array:
    return module.apply({"params": params}, cells)


def _filled_up(cells: Cells, size: int) -> Cells:
    """With empty cells."""
    more = [(0, size - len(cells.tokens_BxL)), (0, 0)]
    return jax.tree.map(lambda of: np.pad(of, more), cells)


def logits(
    params: dict, module: Classifier, corpus: Corpus, rows: np.ndarray, buckets: int,
    devices: list | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Logits without dropout, the shortest cells first.

    Args:
      params: of the module.
      module: the classifier.
      corpus, rows: the cells, int64 [N].
      buckets: lengths to pad to, at most.
      devices: that share the work; None takes all of this process.

    Yields:
      Places [n] of cells among the rows, their tokens int32 [n, L], and float32
      [n, classes] or [n, L, classes].
    """
    lengths = corpus.lengths(rows).clip(max=module.model.length)
    padded = np.array(padded_lengths(lengths, module.model.length, buckets))
    order, (mesh, size) = np.argsort(lengths, kind="stable"), _mesh(CELLS_AT_ONCE, devices)
    with jax.set_mesh(mesh), tqdm(total=len(rows), desc="classifying", unit="cells") as bar:
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        for start in range(0, len(rows), CELLS_AT_ONCE):
            places = order[start : start + CELLS_AT_ONCE]
            length = int(padded[np.searchsorted(padded, lengths[places].max())])
            cells = corpus.inputs(rows[places], length, module.model.encoding)
            full = sharding.shard_batch(_filled_up(cells, size), mesh)
            found = _logits(params, full, module)
            yield places, cells.tokens_BxL, np.asarray(found)[: len(places)]
            bar.update(len(places))


def _mesh(cells: int, devices: list | None) -> tuple[Mesh, int]:
    """A mesh of all devices along "data", and the least multiple of them that holds the cells."""
    devices = jax.devices() if devices is None else devices
    size = -(-cells // len(devices)) * len(devices)
    return sharding.make_mesh(sharding.DeviceSettings(), size, devices), size
