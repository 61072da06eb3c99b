"""A trained run, a corpus -> which of its cells the run was pretrained on, told beside scores."""

import dataclasses
import json
import pathlib

import numpy as np

from scaling.corpus.shards import Corpus
from scaling.pretrain import loop


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What a run has seen of a corpus's cells.

    Attributes:
      cells: those that it was pretrained on, bool [cells]; None where that is not known.
      annotations: of them that it was pretrained on too (`supervision.columns`).
      run: names it.
    """

    cells: np.ndarray | None = None
    annotations: tuple[str, ...] = ()
    run: str = ""

    def unseen(self, rows: np.ndarray) -> np.ndarray:
        """Which cells an annotation can be tested on, bool [n].

        All; but where the run was pretrained on annotations, those that it was not pretrained on:
        any annotation may tell another.

        Args:
          rows: of the cells, int64 [n].

        Raises:
          ValueError: there is none, or it is not known which.
        """
        if not self.annotations:
            return np.ones(len(rows), bool)
        told = f"{self.run} was pretrained on annotations (supervision.columns has "
        told += f"{', '.join(self.annotations)})"
        if self.cells is None:
            raise ValueError(
                f"{told}, and of which of these cells is not known: its corpus, or a file that its "
                "settings name, is not where it was, or has changed; bring it back, or take a run "
                "without supervision.columns"
            )
        found = ~self.cells[rows]
        if not found.any():
            raise ValueError(
                f"{told} of all {len(rows)} test cells; give cells that it was not pretrained on "
                "(data.h5ad, --corpus), another finetune.seed, finetune.split=cell, or a run "
                "without supervision.columns"
            )
        return found

    def note(self, rows: np.ndarray, what: str) -> str:
        """What a reader must know of scores of cells; "" where they are new to the run.

        Args:
          rows: of the cells, int64 [n].
          what: they are, as "test".
        """
        if self.cells is None:
            return f"it is not known whether the run was pretrained on {what} cells"
        if not (count := self.cells[rows].sum()):
            return ""
        beside = f", and on their {', '.join(self.annotations)}" if self.annotations else ""
        return f"the run was pretrained on {count} of {len(rows)} {what} cells{beside}"


UNKNOWN = Seen()


def of_run(folder: pathlib.Path, corpus: Corpus) -> Seen:
    """What a run has seen of a corpus, its own or another.

    A cell of another counts as seen where its fingerprint is that of a cell pretrained on, which
    the run's own corpus tells while it is where it was.
    """
    held = json.loads((folder / loop.SETTINGS).read_text())
    if "train" not in held:  # weights from elsewhere
        return Seen(run=str(folder))
    annotations, own = tuple(held.get("classes", ())), corpus  # none in records of early runs
    rows = loop.rows_trained_on(folder, corpus)
    if rows is None:
        try:
            own = Corpus.open(pathlib.Path(held["corpus"]))
        except (OSError, ValueError):
            return Seen(None, annotations, str(folder))
        rows = loop.rows_trained_on(folder, own)
    # Fingerprints are of counts, or of ready tokens, and tell nothing of each other.
    if rows is None or own.has_counts(rows) != corpus.has_counts(np.arange(len(corpus.obs))):
        return Seen(None, annotations, str(folder))
    cells = corpus.obs["fingerprint"].isin(own.obs["fingerprint"].iloc[rows]).to_numpy()
    return Seen(cells, annotations, str(folder))
