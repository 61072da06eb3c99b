"""Numbers that steps leave on the device -> the run's record, TensorBoard and progress bar."""

import json
import time

import jax
import numpy as np
from tqdm import tqdm

from scaling.pretrain import hosts, optimizer
from scaling.pretrain.masking import MaskedCells
from scaling.pretrain.step import held_out_sums
from scaling.pretrain.writer import RunWriter

NOT_FINITE = "not_finite.json"  # the step that ended a run, and its cells


class Log:
    """Record, TensorBoard and progress bar of one run; reads each step's numbers a step later."""

    def __init__(self, folder, start, steps, train, sizes, seconds, cells_of):
        self._folder, self._cells_of = folder, cells_of
        # Without a checkpoint the run starts anew, and so does its record.
        self._writer = RunWriter(folder, start or -1)
        self._bar = tqdm(total=steps, initial=start, desc=folder.name, unit="step", leave=False,
                         disable=not hosts.first())
        self._train, self._sizes = train, sizes
        self._rate = optimizer.schedule(train, steps)
        self._began = time.monotonic() - seconds
        self._last = start, time.monotonic()
        self._pending, self._steps = None, steps

    def clock(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self._began}

    def train(self, step: int, logged: dict) -> None:
        """Hands in a dispatched step; the device computes it while the one before is written."""
        self.flush()
        self._pending = step, logged

    def flush(self) -> None:
        if self._pending is None:
            return
        step, logged = self._pending[0], jax.device_get(self._pending[1])
        self._pending = None
        if not np.isfinite([logged["loss"], logged["gradient_norm"]]).all():
            self._not_finite(step, float(logged["loss"]), float(logged["gradient_norm"]))
        if step % self._train.log_every and step != self._steps:
            return
        (before, then), now = self._last, time.monotonic()
        self._last = step, now
        sums, cells = logged["sums"], max(int(logged["cells"]), 1)
        row = {
            "train/loss": float(logged["loss"]),
            "train/cross_entropy": float(sums.cross_entropy / max(sums.positions, 1)),
            "train/similarity": float(sums.similarity / max(sums.pairs, 1)),
            **{f"train/{name}": float(v / cells) for name, v in logged["of_cells"].items()},
            "train/gradient_norm": float(logged["gradient_norm"]),
            "train/surplus_positions": int(logged["surplus"]),
            "learning_rate": float(self._rate(step - 1)),
            "cells_per_second": (step - before) * self._train.batch / (now - then),
            **self._sizes,
        }
        self._writer.write(step, row)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(
            {"loss": f"{row['train/loss']:.3f}", "cells/s": f"{row['cells_per_second']:.0f}"}
        )

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        path = self._folder / NOT_FINITE
        if hosts.first():
            found = {"step": step, "loss": repr(loss), "gradient_norm": repr(norm)}
            path.write_text(json.dumps({**found, "cells": self._cells_of(step - 1)}, indent=1))
        what = f"loss is {loss}" if not np.isfinite(loss) else f"gradients' norm is {norm}"
        raise FloatingPointError(
            f"the {what} at step {step}, whose cells are listed in {path}; lower "
            "train.learning_rate, or look at these cells"
        )

    def held_out(self, step: int, params: dict, held_out: list[MaskedCells], program) -> None:
        """Measures the loss of held-out cells, from sums over all of them."""
        self.flush()
        parts = [held_out_sums(params, batch, program) for batch in held_out]
        total = jax.device_get(jax.tree.map(lambda *leaves: sum(leaves), *parts))
        row = {
            "held_out/loss": float(total.value(program.objective)),
            "held_out/cross_entropy": float(total.cross_entropy / max(total.positions, 1)),
            "held_out/similarity": float(total.similarity / max(total.pairs, 1)),
        }
        self._writer.write(step, row)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()
