"""A model or a baseline + a corpus's held-out cells -> rows of the scores table."""

import numpy as np

from scaling.corpus.shards import Corpus
from scaling.evaluate import baselines, batch_mixing, cell_types, embed, masked_genes
from scaling.evaluate.held_out import EvaluateSettings
from scaling.pretrain.masking import MaskingSettings
from scaling.pretrain.model import ModelSettings


class HeldOut:
    """The held-out cells of one data set, with what their scores need, read once.

    Args:
      corpus: built corpus.
      name: of the data set.
      rows: its cells.
      settings: what is scored.
    """

    def __init__(self, corpus: Corpus, name: str, rows: np.ndarray, settings: EvaluateSettings):
        self.corpus, self.name, self.rows, self._settings = corpus, name, rows, settings
        self.counts = corpus.counts(rows) if corpus.has_counts(rows) else None
        self.totals = corpus.obs["total"].to_numpy()[rows]
        self._obs = corpus.obs.iloc[rows].reset_index(drop=True)
        has_donors = (self._obs["donor"] != "").all() and self._obs["donor"].nunique() > 1
        self._group = "donor" if has_donors else "batch"
        self._before = None

    def model_rows(
        self, params: dict, model: ModelSettings, mask: MaskingSettings
    ) -> list[dict]:
        """All scores of a model: masked genes and the frozen embedding's."""
        found = masked_genes.score_model(params, model, mask, self.corpus, self.rows)
        scored = [{"task": "masked_genes", "note": "", **row} for row in found]
        layer = self._settings.layer
        embedding = embed.embed_corpus(params, model, layer, self.corpus, self.rows)
        return self._named(scored) + self.embedding_rows(embedding)

    def floor_rows(
        self, training_rows: np.ndarray, length: int, mask: MaskingSettings
    ) -> dict[str, list[dict]]:
        """Masked-gene scores of the floors, by floor; frequencies are the training cells'."""
        frequency_V = masked_genes.token_frequency(self.corpus, training_rows, length)
        found = masked_genes.score_floors(frequency_V, length, mask, self.corpus, self.rows)
        return {
            name: self._named([{"task": "masked_genes", "note": "", **row} for row in rows])
            for name, rows in found.items()
        }

    def embedding_rows(self, embedding_NxD: np.ndarray) -> list[dict]:
        """Cell-type and batch-mixing scores of an embedding of these cells."""
        found = [("cell_types", self._cell_types(embedding_NxD), batch_mixing.packages())]
        if self.name not in self._settings.no_batch_mixing:
            mixing = self._batch_mixing(embedding_NxD)
            found.append(("batch_mixing", mixing, batch_mixing.packages()))
        rows = [
            {"task": task, "score": score, "value": value, "note": note, "n": n, "scored_by": by}
            for task, (scores, n), by in found
            for score, (value, note) in scores.items()
        ]
        return self._named([{**row, "positions": None, "read_from": None} for row in rows])

    def _named(self, rows: list[dict]) -> list[dict]:
        return [{"dataset": self.name, **row} for row in rows]

    def _cell_types(self, embedding_NxD) -> tuple[dict, int]:
        names = [f"{probe}_{s}" for probe in ("knn", "logistic") for s in ("accuracy", "macro_f1")]
        grouped = (self._obs[self._group] != "").any()
        try:
            fit, test, how = cell_types.split(
                self._obs,
                label="cell_type",
                group=self._group if grouped else None,
                seed=self._settings.seed,
            )
        except ValueError as reason:  # no labels: the score says so
            return dict.fromkeys(names, (None, str(reason))), 0
        labels = self._obs["cell_type"].to_numpy()
        types = len(set(labels[fit]))
        if types < 2 or len(fit) < cell_types.NEIGHBOURS or not len(test):
            note = f"{how}: {len(fit)} cells of {types} types to fit on, {len(test)} to test on"
            return dict.fromkeys(names, (None, note)), 0
        found = cell_types.probe(
            embedding_NxD[fit], labels[fit], embedding_NxD[test], labels[test],
            seed=self._settings.seed,
        )
        return {name: (value, how) for name, value in found.items()}, len(test)

    def _batch_mixing(self, embedding_NxD) -> tuple[dict, int]:
        known = ((self._obs["cell_type"] != "") & (self._obs["batch"] != "")).to_numpy()
        few = known.sum() < batch_mixing.NEIGHBOURS
        if few or self.counts is None:
            need = f"a label and a batch, {batch_mixing.NEIGHBOURS} needed" if few else "no counts"
            note = f"{known.sum()} cells have {need}"
            names = (*batch_mixing.BIOLOGY, "avg_bio", *batch_mixing.BATCH, "average_batch_score")
            return dict.fromkeys(names, (None, note)), 0
        if self._before is None:  # 50 components of the expression itself, as PCR compares them
            pca = baselines.fit_pca(self.counts[known], self.totals[known])
            self._before = baselines.apply_pca(pca, self.counts[known], self.totals[known])
        found = batch_mixing.integration(
            embedding_NxD[known],
            self._obs["cell_type"].to_numpy()[known],
            self._obs["batch"].to_numpy()[known],
            self._before,
            seed=self._settings.seed,
        )
        return found, int(known.sum())


def baseline_rows(corpus: Corpus, rows: np.ndarray, held_out: list[HeldOut]) -> dict[str, list]:
    """Scores of HVG and PCA fitted on the cells that a model of that size was trained on.

    Args:
      corpus: built corpus.
      rows: the training cells.
      held_out: data sets to score.

    Returns:
      {"hvg": rows, "pca": rows}; without the data sets whose cells have no counts, and empty where
      the training cells have none.
    """
    if not corpus.has_counts(rows):
        return {}
    held_out = [data for data in held_out if data.counts is not None]
    counts, totals = corpus.counts(rows), corpus.obs["total"].to_numpy()[rows]
    hvg, pca = baselines.fit_hvg(counts, totals), baselines.fit_pca(counts, totals)
    return {
        "hvg": [
            row
            for data in held_out
            for row in data.embedding_rows(baselines.apply_hvg(hvg, data.counts, data.totals))
        ],
        "pca": [
            row
            for data in held_out
            for row in data.embedding_rows(baselines.apply_pca(pca, data.counts, data.totals))
        ],
    }
