"""Fine-tuning settings -> learning rates, AdamW, and which parameters stay as they are."""

import dataclasses
import math
from collections.abc import Mapping

import optax

from scaling.pretrain.model import ModelSettings

TASKS, STARTS, SPLITS = ("cells", "genes"), ("pretrained", "untrained"), ("cell", "donor")
EMBEDDING = ("embedding", "positions", "token_type", "norm")


@dataclasses.dataclass(frozen=True)
class FinetuneSettings:
    """A fine-tuning; the fields are those of `config.finetune`, explained in
    configs/finetune_cell_types.py.
    """

    task: str
    start: str
    pooling: str
    dropout: float
    frozen_layers: int
    frozen_embedding: bool
    learning_rate: float
    warmup: float
    decay_power: float
    end_rate: float
    weight_decay: float
    clip: float
    batch: int
    epochs: float
    buckets: int
    split: str
    test_share: float
    min_share: float
    cells: int
    gene_classes: str
    folds: int
    seed: int

    def __post_init__(self):
        names = {
            "task": TASKS, "start": STARTS, "split": SPLITS,
            "pooling": ("none",) if self.task == "genes" else ("mean", "first"),
        }
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"finetune.{name} is {getattr(self, name)!r}; there are {', '.join(known)}"
                )
        whole = self.warmup >= 2 and float(self.warmup).is_integer()
        ranges = {
            "dropout": (0 <= self.dropout <= 0.999, "a share from 0 to 0.999"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a number above 0"),
            "end_rate": (0 <= self.end_rate < self.learning_rate, "one from 0, below the peak"),
            "decay_power": (0 < self.decay_power < math.inf, "a number above 0; 1 is linear"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0, or a number above it"),
            "clip": (self.clip > 0, "a number above 0"),
            "epochs": (0 < self.epochs < math.inf, "a number above 0"),
            "warmup": (0 <= self.warmup < 1 or whole, "a share below 1, or whole steps from 2"),
            "test_share": (0 < self.test_share < 1, "a share between 0 and 1"),
            "min_share": (0 <= self.min_share < 1, "a share below 1, or 0"),
            "frozen_layers": (self.frozen_layers >= 0, "0, or a number of layers"),
            "batch": (self.batch >= 1, "a number of cells"),
            "buckets": (self.buckets >= 1, "a number of lengths"),
            "cells": (self.cells >= 0, "0 for all, or a number of cells"),
            "folds": (self.folds >= 2, "2 or more"),
            "seed": (0 <= self.seed < 2**32, "a whole number from 0 to 2^32 - 1"),
            "gene_classes": (
                bool(self.gene_classes) == (self.task == "genes"),
                "a CSV of genes' classes where finetune.task is genes, '' where it is cells",
            ),
        }
        for name, (holds, wanted) in ranges.items():
            if not holds:
                raise ValueError(f"finetune.{name} is {getattr(self, name)!r}; give {wanted}")

    @classmethod
    def from_config(cls, config: Mapping[str, Mapping]) -> "FinetuneSettings":
        """Reads `config.finetune`.

        Raises:
          ValueError: there is none, or a setting is impossible.
        """
        if "finetune" not in config:
            raise ValueError(
                "the config has no part 'finetune'; start from one of configs/finetune_*.py"
            )
        return cls(**config["finetune"])

    def program(self) -> "FinetuneSettings":
        """The settings that a compiled step depends on: those that differ in the rest share it."""
        rest = {"start": STARTS[0], "split": SPLITS[0], "test_share": 0.5, "min_share": 0.0}
        rest |= {"cells": 0, "folds": 2, "seed": 0, "batch": 1, "epochs": 1.0, "buckets": 1}
        return dataclasses.replace(self, **rest)

    def steps(self, cells: int) -> int:
        """Steps over so many training cells.

        Raises:
          ValueError: there are no more of them than the warm-up has.
        """
        steps = math.ceil(self.epochs * cells / self.batch)
        if self.warmup >= max(steps, 2):
            raise ValueError(
                f"finetune.warmup is {self.warmup:g} steps, and {self.epochs:g} epochs of {cells} "
                f"cells have {steps}; lower it, give it as a share of the steps (below 1), or "
                "train on more cells"
            )
        return steps


def schedule(settings: FinetuneSettings, steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then polynomial decay to the end rate at the last step."""
    warmup = round(settings.warmup * (1 if settings.warmup >= 2 else steps))
    rate, falling = settings.learning_rate, max(steps - warmup, 1)
    decay = optax.polynomial_schedule(rate, settings.end_rate, settings.decay_power, falling)
    return optax.join_schedules([optax.linear_schedule(0.0, rate, max(warmup, 1)), decay], [warmup])


def frozen(settings: FinetuneSettings, model: ModelSettings) -> set[tuple[str, str]]:
    """First two parts of the paths of the parameters that stay as they are."""
    if settings.frozen_layers > model.layers:
        raise ValueError(
            f"finetune.frozen_layers is {settings.frozen_layers}, and the run's model has "
            f"{model.layers} layers; lower it"
        )
    names = ["bias", *(f"layer_{n}" for n in range(settings.frozen_layers))]
    return {("encoder", name) for name in [*names, *EMBEDDING * settings.frozen_embedding]}


def optimizer(settings: FinetuneSettings, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind a cut of the gradient's norm; matrices decay."""

    def matrices(params):  # a bias of attention is one vector, stored as heads x D/H
        return {path: leaf.ndim > 1 and path[-1] != "bias" for path, leaf in params.items()}

    adamw = optax.adamw(schedule(settings, steps), weight_decay=settings.weight_decay,
                        mask=matrices)
    return optax.chain(optax.clip_by_global_norm(settings.clip), adamw)
