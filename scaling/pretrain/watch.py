"""Numbers that steps leave on the device -> the run's record, TensorBoard and progress bar."""

import contextlib
import json
import time

import jax
import numpy as np
from tqdm import tqdm

from scaling.pretrain import flops, hosts, optimizer
from scaling.pretrain.clock import Clock
from scaling.pretrain.masking import MaskedCells, capacity
from scaling.pretrain.step import RunSettings, held_out_sums
from scaling.pretrain.writer import RunWriter

NOT_FINITE = "not_finite.json"  # the step that ended a run, and its cells
TRACE = "profile"  # folder of a run's trace


class Log:
    """Record, TensorBoard and progress bar of one run; reads each step's numbers a step later.

    Rates are of all the seconds since the row before, whatever they went to. `mfu`, model FLOPs
    utilisation (PaLM, Chowdhery et al. 2022, appendix B), is the share of the devices' bfloat16
    peak that went into the model's own products; rows have none where no peak is known.

    Args:
      folder: of the run.
      start, steps: steps taken before, and of the whole run.
      settings: of the run.
      source: training batches.
      sizes: numbers of parameters, by name.
      saved: what `clock` gave for the checkpoint that the run goes on from; {} without one.
      clock: of the run, which is moved to where the checkpoint stands.
      trace: steps to be written to the folder's trace, the second from here on being the first.
    """

    def __init__(
        self, folder, start, steps, settings: RunSettings, source, sizes, saved, clock: Clock, trace
    ):
        # Without a checkpoint the run starts anew, and so does its record.
        self._writer = RunWriter(folder, start or -1)
        clock.resume(saved, self._writer.last.get("seconds", 0.0))
        bar = {"unit": "step", "leave": False, "disable": not hosts.first()}
        self._bar = tqdm(total=steps, initial=start, desc=folder.name, **bar)
        self._settings, self._source, self._sizes = settings, source, sizes
        self._rate = optimizer.schedule(settings.train, steps)
        self._clock, self._peak = clock, flops.peak(jax.devices())
        self._totals = {name: saved.get(name, 0) for name in ("flops", "tokens_trained")}
        self._last = start, time.monotonic(), dict(self._totals)
        self._pending, self._dispatched, self._steps = None, None, steps
        self._compiled, self._folder = set(), folder
        self._traced, self._tracing = range(min(start + 2, steps), start + 2 + trace), False

    def clock(self) -> dict[str, float]:
        """Seconds by what they went to, goodput, model FLOPs and tokens trained on, so far."""
        return {**self._clock.read(), **self._totals}

    @contextlib.contextmanager
    def input(self):
        """Around the wait for a batch; it counts where the devices came to its end before."""
        began = time.monotonic()
        yield
        if self._dispatched is None or self._dispatched["gradient_norm"].is_ready():
            self._clock.add("input", time.monotonic() - began)

    @contextlib.contextmanager
    def step(self, number: int, batch: MaskedCells, state):
        """Around the dispatch of a step: traces it where that is asked for; counts compiling."""
        if number == self._traced.stop:
            self._end_trace(state)
        elif number == self._traced.start < self._traced.stop:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder / TRACE)
            self._tracing = True
        with (
            jax.profiler.StepTraceAnnotation("train", step_num=number),
            self._compiling(batch.inputs_BxL.shape),
        ):
            yield

    def _compiling(self, program):
        if program in self._compiled:
            return contextlib.nullcontext()
        self._compiled.add(program)
        return self._clock.spent("compile")

    def _end_trace(self, last) -> None:
        if self._tracing:
            jax.block_until_ready(last)
            jax.profiler.stop_trace()
            self._tracing = False

    def train(self, step: int, logged: dict) -> None:
        """Hands in a dispatched step; the device computes it while the one before is written."""
        self.flush()
        self._pending, self._dispatched = (step, logged), logged
        tokens, length = self._source.count(step - 1)
        self._totals["tokens_trained"] += tokens
        self._totals["flops"] += self._flops(length)

    def _flops(self, length: int) -> int:
        """Model FLOPs of a step whose cells are padded to a length."""
        run = self._settings
        sizes = length, capacity(length, run.masking.rate), self._source.genes
        return run.train.batch * flops.of_cell(run.model, *sizes).model

    def flush(self) -> None:
        if self._pending is None:
            return
        step, logged = self._pending[0], jax.device_get(self._pending[1])
        self._pending = None
        if not np.isfinite([logged["loss"], logged["gradient_norm"]]).all():
            self._not_finite(step, float(logged["loss"]), float(logged["gradient_norm"]))
        every = self._settings.train.log_every
        if step % every and step != self._steps:
            return
        (before, then, totals), now = self._last, time.monotonic()
        self._last = step, now, dict(self._totals)
        gained = {name: self._totals[name] - totals[name] for name in totals}
        sums, cells = logged["sums"], max(int(logged["cells"]), 1)
        row = {
            "train/loss": float(logged["loss"]),
            "train/cross_entropy": float(sums.cross_entropy / max(sums.positions, 1)),
            "train/similarity": float(sums.similarity / max(sums.pairs, 1)),
            **{f"train/{name}": float(v / cells) for name, v in logged["of_cells"].items()},
            **_of_classes(logged),
            "train/gradient_norm": float(logged["gradient_norm"]),
            "train/surplus_positions": int(logged["surplus"]),
            "train/padding": self._source.padding(range((step - 1) // every * every, step)),
            **{f"param_norm/{group}": float(v) for group, v in logged["param_norms"].items()},
            **{f"gradient_norm/{group}": float(v) for group, v in logged["gradient_norms"].items()},
            "learning_rate": float(self._rate(step - 1)),
            "cells_per_second": (step - before) * self._settings.train.batch / (now - then),
            "tokens_per_second": gained["tokens_trained"] / (now - then),
            **self.clock(),
            **self._sizes,
        }
        if self._peak:
            row["mfu"] = gained["flops"] / (now - then) / self._peak
        self._writer.write(step, row)
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix(
            {"loss": f"{row['train/loss']:.3f}", "cells/s": f"{row['cells_per_second']:.0f}"}
        )

    def _not_finite(self, step: int, loss: float, norm: float) -> None:
        path = self._folder / NOT_FINITE
        if hosts.first():
            found = {"step": step, "loss": repr(loss), "gradient_norm": repr(norm)}
            path.write_text(json.dumps({**found, "cells": self._source.cells(step - 1)}, indent=1))
        what = f"loss is {loss}" if not np.isfinite(loss) else f"gradients' norm is {norm}"
        raise FloatingPointError(
            f"the {what} at step {step}, whose cells are listed in {path}; lower "
            "train.learning_rate, or look at these cells"
        )

    def held_out(self, step: int, params: dict, held_out: list[MaskedCells], program) -> None:
        """Measures the loss of held-out cells, from sums over all of them."""
        self.flush()
        with self._clock.spent("held_out", after=params):
            with self._compiling("held_out"):
                parts = [held_out_sums(params, batch, program) for batch in held_out]
            total = jax.device_get(jax.tree.map(lambda *leaves: sum(leaves), *parts))
        row = {
            "held_out/loss": float(total.value(program.objective)),
            "held_out/cross_entropy": float(total.cross_entropy / max(total.positions, 1)),
            "held_out/similarity": float(total.similarity / max(total.pairs, 1)),
            "seconds": self._clock.read()["seconds"],
        }
        self._writer.write(step, row)

    def close(self) -> None:
        self._end_trace(self._dispatched)
        self._bar.close()
        self._writer.close()


def _of_classes(logged: dict) -> dict[str, float]:
    """Cross-entropy and accuracy of each supervised column, over the batch's labelled cells."""
    row = {}
    for column, sums in logged.get("classes", {}).items():
        labelled = max(int(logged["labelled"][column]), 1)
        row[f"train/{column}_cross_entropy"] = float(sums["cross_entropy"] / labelled)
        row[f"train/{column}_accuracy"] = float(sums["right"] / labelled)
    return row
