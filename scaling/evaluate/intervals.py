"""What single cells contribute to a score -> the score with a bootstrap interval."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np

DRAWS = 1_000
LEVEL = 0.95
FEWEST_DONORS = 5  # that are drawn; of fewer, resamples hardly differ in more than one
LARGEST = 8_000_000  # weights held at a time
ROUNDING = 1e-9  # of a float64 score, relative


class NotScoredError(ValueError):
    """These cells do not allow a score; the text is the note of a row without a value."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One row of a scores table, without what names the model and the data set.

    Attributes:
      name: of the score, as `macro_f1`.
      value: None where the cells cannot give it; `note` then says why.
      low, high: ends of the 95 % interval; None where there is none.
      n: cells (of masked genes: cells or positions) that the value is computed from.
      of: the part that it is of (a class, a share of noise); "" is all of the data set.
      interval: what was drawn for the interval, "cells" or "40 donors"; "" without one.
      split: how the cells were divided into those fitted on and those tested on; "" undivided.
      note: what a reader must know beside the value.
    """

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    of: str = ""
    interval: str = ""
    split: str = ""
    note: str = ""

    def row(self, **more) -> dict:
        """Fields of a row of a scores table."""
        fields = dataclasses.asdict(self)
        return {"score": fields.pop("name"), **fields, **more}


class Bootstrap:
    """Intervals of scores of one set of cells; every score sees the same resamples.

    Percentile intervals (Efron & Tibshirani 1993, chapter 13) from 1,000 resamples with
    replacement: of whole donors where five or more are known, because the cells of a donor are no
    independent draws, else of cells. A score is a function of how often each cell counts, so that
    embeddings, clusterings, neighbours and fitted probes stay as they are: the interval says how
    much a value depends on which cells were scored, not on which were trained on.

    Args:
      n: cells.
      donors: one name per cell, "" where unknown, or None; used where every cell has one.
      seed: of the resamples.
      units: what is drawn where no donors are, as "genes".
    """

    def __init__(
        self, n: int, donors: np.ndarray | None = None, *, seed: int = 0, units: str = "cells"
    ):
        if donors is not None and np.shape(donors) != (n,):
            raise ValueError(f"donors of shape {np.shape(donors)} for {n} cells: give one per cell")
        self.n, self._seed, self._unit_N = n, seed, np.arange(n)
        self.interval = self._units = units
        if donors is not None and (np.asarray(donors, str) != "").all():
            names, unit_N = np.unique(np.asarray(donors, str), return_inverse=True)
            if len(names) >= FEWEST_DONORS:
                self._unit_N, self.interval = unit_N, f"{len(names)} donors"

    def mean(self, name: str, values_N: np.ndarray, **of) -> Score:
        """Mean of a value per cell; NaN marks cells that do not count."""
        values_N = np.asarray(values_N, np.float64)
        counted_N = np.isfinite(values_N)
        of = {"n": int(counted_N.sum())} | of
        return self.ratio(name, np.where(counted_N, values_N, 0.0), counted_N, **of)

    def ratio(self, name: str, above_N: np.ndarray, below_N: np.ndarray, **of) -> Score:
        """Sum of a value per cell over the sum of another, as nats over positions."""
        return self.score(name, lambda w_SxN: ratio(w_SxN @ above_N, w_SxN @ below_N), **of)

    def score(
        self, name: str, statistic: Callable[[np.ndarray], np.ndarray], **of
    ) -> Score:
        """A score and its interval.

        Args:
          name: of the score.
          statistic: from how often each cell counts, float64 [S, N], to S values; NaN where a
            resample has none.
          of: other fields of the Score.

        Returns:
          The value with every cell counted once; None where all cells together have none. Without
          an interval, and with a note of why, where fewer than 95 % of the resamples have a value,
          or where the value lies outside what they give.
        """
        if not self.n or not np.isfinite(statistic(np.ones((1, self.n)))[0]):
            return Score(name, None, **({"n": self.n, "note": "no cell counts"} | of))
        return self.of_values(name, self.values(statistic), **of)

    def values(self, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """A statistic with every cell counted once, then of each resample: [1 + 1,000, ...]."""
        weights = itertools.chain([np.ones((1, self.n))], self._resamples())  # some at a time
        return np.concatenate([statistic(weights_SxN) for weights_SxN in weights])

    def of_values(self, name: str, values_S: np.ndarray, **of) -> Score:
        """The score of `values`, as `score` gives it."""
        of = {"n": self.n} | of
        value, draws = float(values_S[0]), values_S[1:][np.isfinite(values_S[1:])]
        if not np.isfinite(value):
            return Score(name, None, **of)
        why = f"too few {self._units} for an interval"
        if len(draws) >= LEVEL * DRAWS:
            low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
            slack = ROUNDING * max(abs(low), abs(high))
            if low - slack <= value <= high + slack:
                return Score(name, value, low, high, **({"interval": self.interval} | of))
            why = f"no interval: what repeats in a resample moves it, to {low:.4g} to {high:.4g}"
        return Score(name, value, **of | {"note": joined(of.get("note"), why)})

    def _resamples(self):
        """How often each cell counts, float64 [S, N], a share of all resamples at a time."""
        together = max(1, LARGEST // self.n)
        for first in range(0, DRAWS, together):
            yield self._drawn[first : first + together, self._unit_N].astype(np.float64)

    @functools.cached_property
    def _drawn(self) -> np.ndarray:
        """How often each donor or cell is drawn, uint8 [1,000, donors or cells]."""
        rng, units = np.random.default_rng(self._seed), int(self._unit_N.max()) + 1
        share = np.full(units, 1 / units)
        drawn = [rng.multinomial(units, share).astype(np.uint8) for _ in range(DRAWS)]
        return np.stack(drawn)


def joined(*notes: str | None) -> str:
    """The notes that say something, as one."""
    return "; ".join(filter(None, notes))


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Quotients of two arrays of one shape; NaN where what is divided by is not above 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
