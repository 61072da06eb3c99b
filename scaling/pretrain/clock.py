"""What a run's seconds went to, over all its restarts."""

import contextlib
import time

import jax

NAMES = ("compile", "input", "checkpoint", "held_out", "lost")


class Clock:
    """Counts seconds by name, and all of them; goodput is the share that went to none of the names.

    compile: the first step of each shape, and the first measurement of held-out cells.
    input: the host waited for a batch, and the devices had nothing left to do.
    checkpoint: reading one at the start, and writing, as far as the run waits for it.
    held_out: the loss of held-out cells.
    lost: trained after the last checkpoint and thrown away by a restart, as far as rows tell.
    """

    def __init__(self):
        self._began = time.monotonic()
        self._spent = dict.fromkeys(NAMES, 0.0)

    def resume(self, saved: dict[str, float], last_row: float) -> None:
        """Goes on from what a checkpoint holds.

        Args:
          saved: of `read`; empty where there is no checkpoint.
          last_row: seconds of the record's last row; what lies after the checkpoint was lost.
        """
        seconds = saved.get("seconds", 0.0)
        for name in NAMES:
            self._spent[name] += saved.get(f"seconds/{name}", 0.0)
        lost = max(last_row - seconds, 0.0)
        self._spent["lost"] += lost
        self._began -= seconds + lost

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that passed."""
        self._spent[name] += seconds

    @contextlib.contextmanager
    def spent(self, name: str, after=None):
        """Counts the seconds of its block; a block inside it with another name counts for that.

        Args:
          name: one of `NAMES`.
          after: arrays to wait for first, for a block that would wait for them anyway: until they
            are there, the devices train.
        """
        jax.block_until_ready(after)
        began, before = time.monotonic(), sum(self._spent.values())
        try:
            yield
        finally:
            inside = sum(self._spent.values()) - before
            self._spent[name] += time.monotonic() - began - inside

    def read(self) -> dict[str, float]:
        """seconds, seconds/<name> of each name, and goodput."""
        seconds = time.monotonic() - self._began
        named = {f"seconds/{name}": spent for name, spent in self._spent.items()}
        goodput = 1 - sum(self._spent.values()) / max(seconds, 1e-9)
        return {"seconds": seconds, **named, "goodput": goodput}
