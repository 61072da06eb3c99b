"""A folder with `config.json` and `model.safetensors` <-> an encoder's settings and parameters."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from scaling.corpus.shards import VOCABULARY
from scaling.corpus.vocabulary import Vocabulary
from scaling.geneformer.configs import (
    CONFIG,
    config_of,
    kind_of,
    labels_of,
    read_config,
    settings_of,
)
from scaling.geneformer.tensors import POOLER, REPEATED, TYPES, WORDS, ours, table, theirs
from scaling.pretrain.model import ModelSettings

WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A pretrained or fine-tuned encoder.

    Attributes:
      model: its settings.
      vocabulary: V.
      kind: "masked_lm", "cab", "cells" or "genes": which head it has.
      params: of `RankEncoder`, or of `evaluate.classifier.Classifier` where the kind is of classes.
      labels: names of the classes, in the order of their logits.
      unread: tensors of the file that no output depends on, by name: the second token type, and a
        pooler that no head reads. They go back into a file.
    """

    model: ModelSettings
    vocabulary: int
    kind: str
    params: dict
    labels: tuple[str, ...] = ()
    unread: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def read(folder: pathlib.Path) -> Weights:
    """Reads `config.json` and `model.safetensors`; which layout it is, the names of tensors tell.

    Narrower floats become float32.

    Raises:
      ValueError: another model or setting than the encoder has, pickled weights, a damaged file,
        or tensors that are missing, too many, or of another shape: each is named.
    """
    config = read_config(folder)
    tensors = _read_tensors(folder)
    kind = "cab" if "transform.dense.weight" in tensors else kind_of(config, folder / CONFIG)
    model, vocabulary = settings_of(config, folder / CONFIG), config["vocab_size"]
    labels = labels_of(config, folder / CONFIG) if kind in ("cells", "genes") else ()
    expected = {name: shape for name, _, _, shape in table(model, vocabulary, kind, len(labels))}
    expected[TYPES] = (config.get("type_vocab_size", 2), model.width)
    if kind == "cab":
        expected["decoder.weight"] = expected[WORDS]
    given = {name: array for name, array in tensors.items() if name not in REPEATED}
    unread = {name: given.pop(name) for name in POOLER if name not in expected and name in given}
    _check(folder / WEIGHTS, given, expected)
    for name in {*REPEATED[1:], "decoder.weight"} & set(tensors):
        other = WORDS if name.endswith("weight") else "cls.predictions.bias"
        if not np.array_equal(tensors[name], tensors[other]):
            raise ValueError(
                f"{folder / WEIGHTS}: {name} differs from {other}, and the encoder's head has no "
                "weights of its own for it; such a model cannot be held"
            )
    params = unflatten_dict({
        path: ours(given[name], form, model).astype(np.float32)
        for name, path, form, _ in table(model, vocabulary, kind, len(labels))
    })  # fmt: skip
    if len(given[TYPES]) > 1:
        unread[TYPES] = given[TYPES][1:]
    return Weights(model, vocabulary, kind, params, labels, unread)


def write(
    weights: Weights, folder: pathlib.Path, vocabulary: Vocabulary | None = None
) -> None:
    """Writes `config.json`, `model.safetensors` and the vocabulary, each whole or not at all.

    The factor of a width-transferred head (`ModelSettings.ratio`) goes into its norm.
    """
    model, kind, labels = weights.model, weights.kind, weights.labels
    leaves, tensors = flatten_dict(weights.params), {}
    for name, path, form, shape in table(model, weights.vocabulary, kind, len(labels)):
        leaf = np.asarray(leaves[path])
        if path[0] == "head_norm":
            leaf = leaf * np.float32(model.ratio)
        tensors[name] = np.ascontiguousarray(theirs(leaf, form).reshape(shape))
    unread = dict(weights.unread)
    tensors[TYPES] = np.concatenate([tensors[TYPES], unread.pop(TYPES, tensors[TYPES][:0])])
    if kind == "cab":
        tensors["decoder.weight"] = tensors[WORDS].copy()
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(config_of(model, weights.vocabulary, kind, labels, len(tensors[TYPES])))
    _write(folder / WEIGHTS, safetensors.numpy.save(tensors | unread, {"format": "pt"}))
    if vocabulary is not None:
        vocabulary.save(folder / VOCABULARY)
    _write(folder / CONFIG, config.encode())


def has_place(model: ModelSettings) -> bool:
    """Whether Geneformer's files can hold such an encoder: one of ranks, without latents."""
    return model.encoding == "ranks" and not model.latents


def _read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = [p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))]
        remedy = f"give a folder with {WEIGHTS}"
        if pickled:
            remedy = (
                f"{', '.join(pickled)} is a pickle, which can run any code when it is read, and is "
                "not read here; where you trust it, convert it with the transformers library: "
                f"AutoModelForMaskedLM.from_pretrained('{folder}').save_pretrained('NEW_FOLDER', "
                "safe_serialization=True)"
            )
        raise ValueError(f"{folder}: no {WEIGHTS}; {remedy}")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        lfs = path.read_bytes()[:20].startswith(b"version https://git")
        told = "it is a Git LFS pointer: run `git lfs pull`" if lfs else "download it again"
        raise ValueError(f"{path} cannot be read ({error}); {told}") from error


def _check(path: pathlib.Path, given: dict, expected: dict) -> None:
    wrong = [f"missing: {name} {expected[name]}" for name in expected if name not in given]
    wrong += [f"extra: {name} {given[name].shape}" for name in given if name not in expected]
    wrong += [
        f"{name} is {given[name].shape}, {shape} expected"
        for name, shape in expected.items() if name in given and given[name].shape != shape
    ]  # fmt: skip
    if wrong:
        raise ValueError(f"{path} does not fit its {CONFIG}: {'; '.join(wrong)}")


def _write(path: pathlib.Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    os.replace(partial, path)
