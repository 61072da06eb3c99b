"""`config.json` of a BERT <-> the encoder's settings."""

import json
import pathlib

from scaling.pretrain.model import ModelSettings

CONFIG = "config.json"
ARCHITECTURES = {
    "BertForMaskedLM": "masked_lm",
    "BertForSequenceClassification": "cells",
    "BertForTokenClassification": "genes",
}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
               "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu"}  # fmt: skip


def read_config(folder: pathlib.Path) -> dict:
    """The fields of a folder's `config.json`, or an error that says what is wrong with it."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no config.json of a model ({error}); give the folder that holds it and "
            "its weights"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise ValueError(f"{path}: no vocab_size; give the config.json of a BERT")
    return config


def settings_of(config: dict, path: pathlib.Path) -> ModelSettings:
    """The encoder's settings of a `config.json`.

    Raises:
      ValueError: a field is missing, or has a value that the encoder does not know.
    """
    fixed = {"model_type": "bert", "position_embedding_type": "absolute", "pad_token_id": 0,
             "is_decoder": False, "tie_word_embeddings": True}  # fmt: skip
    wrong = [
        f"{name} is {config[name]!r}, which must be {value!r}"
        for name, value in fixed.items() if config.get(name, value) != value
    ]  # fmt: skip
    if config.get("hidden_act") not in ACTIVATIONS:
        wrong.append(f"hidden_act is {config.get('hidden_act')!r}; one of {sorted(ACTIVATIONS)}")
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    try:
        return ModelSettings(
            layers=config["num_hidden_layers"],
            width=config["hidden_size"],
            heads=config["num_attention_heads"],
            feed_forward=config["intermediate_size"],
            length=config["max_position_embeddings"],
            activation=ACTIVATIONS[config["hidden_act"]],
            dropout=config["hidden_dropout_prob"],
            attention_dropout=config["attention_probs_dropout_prob"],
            norm_epsilon=config["layer_norm_eps"],
        )
    except KeyError as error:
        raise ValueError(f"{path}: no {error.args[0]}; give the config.json of a BERT") from error


def config_of(
    model: ModelSettings, vocabulary: int, kind: str, labels: tuple[str, ...], types: int
) -> dict:
    """The `config.json` of an encoder, for the transformers library; labels are of classes."""
    named = {of: name for name, of in ARCHITECTURES.items()}
    config = {
        "architectures": [named["masked_lm" if kind == "cab" else kind]],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "num_hidden_layers": model.layers,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "intermediate_size": model.feed_forward,
        "max_position_embeddings": model.length,
        "hidden_act": next(name for name, of in ACTIVATIONS.items() if of == model.activation),
        "hidden_dropout_prob": model.dropout,
        "attention_probs_dropout_prob": model.attention_dropout,
        "layer_norm_eps": model.norm_epsilon,
        "type_vocab_size": types,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    if labels:
        config["id2label"] = {str(k): name for k, name in enumerate(labels)}
        config["label2id"] = {name: k for k, name in enumerate(labels)}
    return config


def kind_of(config: dict, path: pathlib.Path) -> str:
    """Which head a model has, by its architecture."""
    named = config.get("architectures") or ["none"]
    if named[0] not in ARCHITECTURES:
        raise ValueError(
            f"{path}: the architecture is {named[0]!r}; there are "
            f"{', '.join(ARCHITECTURES)}, and the layout of the CAB checkpoints"
        )
    return ARCHITECTURES[named[0]]


def labels_of(config: dict, path: pathlib.Path) -> tuple[str, ...]:
    """Names of the classes, in the order of their logits.

    Raises:
      ValueError: a class lacks its name.
    """
    names = config.get("id2label")
    if names is None:
        names = {str(k): f"LABEL_{k}" for k in range(config.get("num_labels", 2))}
    if set(names) != {str(k) for k in range(len(names))}:
        raise ValueError(f"{path}: id2label names {', '.join(names)}; name the classes from 0 on")
    return tuple(str(names[str(k)]) for k in range(len(names)))
