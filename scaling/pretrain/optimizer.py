"""Training settings -> AdamW with warm-up and linear decay, and how long a run takes."""

import dataclasses
import math

import jax
import optax

from scaling.corpus.subsets import SCHEMES


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How a run trains; the fields are those of `config.train`.

    Attributes:
      cells: unique cells of the subset; 0 takes the whole pool.
      steps, epochs: duration; exactly one of them is above 0.
      batch: cells of a global batch.
      learning_rate: peak, reached after `warmup`, then falling to 0.
      warmup: a share of all steps, below 1, or a whole number of steps, from 2.
      weight_decay: of AdamW; biases, norms' scales and vectors are left alone.
      clip: norm that gradients are cut to.
      subset_seed, init_seed, mask_seed: of the subset; of weights, dropout and order; of masks.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      log_every: steps between records.
      held_out_cells: cells whose loss is measured.
      buckets: lengths that batches are padded to, at most; 1 pads all to the model's length.
      scheme: of the subset, one of `subsets.SCHEMES`.
      spike, spike_share: data set that gives this share of the subset's cells; "" and 0: none.
      held_out_every: steps between measurements of held-out cells; 0 is a tenth of the run.
    """

    cells: int
    steps: int
    epochs: float
    batch: int
    learning_rate: float
    warmup: float
    weight_decay: float
    clip: float
    subset_seed: int
    init_seed: int
    mask_seed: int
    checkpoint_every: int
    log_every: int
    held_out_cells: int
    buckets: int = 1
    scheme: str = "random"
    spike: str = ""
    spike_share: float = 0.0
    held_out_every: int = 0

    def __post_init__(self):
        if min(self.steps, self.epochs) < 0 or (self.steps > 0) == (self.epochs > 0):
            raise ValueError(
                f"train.steps is {self.steps} and train.epochs {self.epochs}; set exactly one of "
                "them above 0 (--config.train.epochs=0 leaves the steps)"
            )
        ranges = {
            "epochs": 0 <= self.epochs < math.inf,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip > 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise ValueError(
                    f"train.{name} is {getattr(self, name)}; give a number above 0"
                    + (", or 0" if name in ("epochs", "weight_decay") else "")
                )
        if not 0 <= self.warmup < 1 and not (self.warmup >= 2 and float(self.warmup).is_integer()):
            raise ValueError(
                f"train.warmup is {self.warmup}; give a share of the run, below 1, or a whole "
                "number of steps, from 2"
            )
        counts = self.batch, self.checkpoint_every, self.log_every, self.held_out_cells
        if min(*counts, self.buckets) < 1:
            raise ValueError(
                f"train's batch, intervals, held_out_cells and buckets must be above 0: {self}"
            )
        if self.held_out_every < 0:
            raise ValueError(
                f"train.held_out_every is {self.held_out_every}; give a number of steps, or 0 for "
                "ten times in a run"
            )
        if self.scheme not in SCHEMES:
            raise ValueError(f"train.scheme is {self.scheme!r}; there are {SCHEMES}")
        if not 0 <= self.spike_share <= 1 or bool(self.spike) != (self.spike_share > 0):
            raise ValueError(
                f"train.spike is {self.spike!r} and train.spike_share {self.spike_share}; name a "
                "data set and give its share, above 0 to 1, or neither"
            )

    def total_steps(self, cells: int) -> int:
        """Steps of a run over so many unique cells.

        Raises:
          ValueError: the run does not reach each cell once: it would be one of fewer unique
            cells than said; or it ends before its warm-up.
        """
        steps = self.steps or math.ceil(self.epochs * cells / self.batch)
        if steps * self.batch < cells:
            raise ValueError(
                f"{steps} steps of {self.batch} cells do not reach each of the {cells} cells once; "
                "raise train.steps or train.epochs, or lower train.cells (of a study, study.sizes)"
            )
        if self.warmup >= max(steps, 2):
            raise ValueError(
                f"train.warmup is {self.warmup:g} steps, and a run over {cells} cells has {steps}; "
                "lower it, give it as a share of the run (below 1), or train longer"
            )
        return steps

    def measured(self, step: int, steps: int) -> bool:
        """Whether held-out cells are measured after so many of a run's steps."""
        return step == steps or step % (self.held_out_every or max(1, steps // 10)) == 0


def schedule(settings: TrainSettings, steps: int) -> optax.Schedule:
    """Linear warm-up, then linear decay to 0 at the last step."""
    warmup = round(settings.warmup * (1 if settings.warmup >= 2 else steps))
    rising = optax.linear_schedule(0.0, settings.learning_rate, max(warmup, 1))
    falling = optax.linear_schedule(settings.learning_rate, 0.0, max(steps - warmup, 1))
    return optax.join_schedules([rising, falling], [warmup])


def optimizer(
    settings: TrainSettings, steps: int, hidden_rate: float = 1.0
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019) behind a cut of the gradient's norm.

    Args:
      settings: of the run.
      steps: of the whole run.
      hidden_rate: factor of the hidden matrices' learning rate, see `ModelSettings.base_width`;
        their decay, rate x weight_decay, is not multiplied. It changes no state's shape.
    """
    adam = optax.scale_by_adam()

    def matrices(params):  # a bias of attention is one vector, stored as heads x D/H
        return jax.tree.map_with_path(lambda p, leaf: leaf.ndim > 1 and p[-1].key != "bias", params)

    def update(grads, moments, params=None):
        direction, moments = adam.update(grads, moments, params)
        return jax.tree.map_with_path(scaled, direction), moments

    def scaled(path, leaf):
        return leaf * hidden_rate if path[-1].key == "kernel" else leaf

    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.chain(
            optax.GradientTransformation(adam.init, update),
            optax.add_decayed_weights(settings.weight_decay, matrices),
            optax.scale_by_learning_rate(schedule(settings, steps)),
        ),
    )
