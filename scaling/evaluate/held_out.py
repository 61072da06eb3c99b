"""What is scored: its settings, and a corpus's held-out cells by data set."""

import dataclasses

import numpy as np

from scaling.corpus import subsets
from scaling.corpus.shards import Corpus

ORDER_SEED = 0  # of the choice of cells where a data set has more than are scored


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is scored; the fields are those of `config.evaluate`.

    Attributes:
      layer: whose states are averaged to a cell's embedding; -2 is the layer before the last.
      cells: of a data set at most, chosen by hash.
      no_batch_mixing: data sets whose "batches" are no batches.
      seed: of splits and clusterings.
    """

    layer: int
    cells: int
    no_batch_mixing: tuple[str, ...]
    seed: int


def held_out_sets(corpus: Corpus, settings: EvaluateSettings) -> dict[str, np.ndarray]:
    """Rows of the held-out cells of each data set, by its name."""
    found = {}
    held_out = corpus.obs["split"].to_numpy() == "held_out"
    for name in sorted(corpus.obs["dataset"][held_out].unique()):
        rows = np.flatnonzero(held_out & (corpus.obs["dataset"] == name).to_numpy())
        ids = corpus.obs["cell_id"].to_numpy()[rows]
        found[name] = np.sort(rows[subsets.order(ids, ORDER_SEED)[: settings.cells]])
    return found
