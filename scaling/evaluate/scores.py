"""Representations + held-out cells -> rows of the scores table, one task after another."""

import dataclasses
import functools
import importlib.metadata
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from scaling.corpus import cell_ontology, gene_tables
from scaling.corpus.vocabulary import read_gene_names
from scaling.evaluate import (
    baselines,
    batch_mixing,
    cell_types,
    classifiers,
    confounds,
    confusion,
    gene_sets,
    label_scores,
    masked_genes,
    noise,
    onto_rwr,
    ontology,
    perturbation,
    roughness,
    screens,
    umaps,
)
from scaling.evaluate.changes import nothing_scored
from scaling.evaluate.held_out import HeldOut
from scaling.evaluate.intervals import NotScoredError, Score
from scaling.evaluate.noisy_counts import Cells
from scaling.evaluate.representations import Representation
from scaling.pretrain.masking import MaskingSettings
from scaling.pretrain.model import ModelSettings

PROBES = ("knn", "logistic")
PUBLISHED = "published"  # of the classifier that comes with a representation
NAMES = {  # of the scores of any representation, by task
    "cell_types": [f"{probe}_{of}" for probe in PROBES for of in ("accuracy", "macro_f1")],
    "batch_mixing": batch_mixing.NAMES,
    "confounds": confounds.NAMES,
    "noise": ["accuracy", "macro_f1"],
}


def rows_of_model(
    params: dict, model: ModelSettings, mask: MaskingSettings, data: HeldOut
) -> list[dict]:
    """Masked-gene scores of a model."""
    if "masked_genes" not in data.settings.tasks:
        return []
    cells = data.corpus, data.rows
    found = masked_genes.score_model(params, model, mask, *cells, seed=data.settings.seed)
    return [_row(data, "masked_genes", row) for row in found]


def rows_of_floors(
    data: HeldOut, training_rows: np.ndarray, length: int, mask: MaskingSettings
) -> dict[str, list[dict]]:
    """Masked-gene scores of the floors, by floor; frequencies are the training cells'."""
    if "masked_genes" not in data.settings.tasks:
        return {}
    frequency_V = masked_genes.token_frequency(data.corpus, training_rows, length)
    cells = data.corpus, data.rows
    found = masked_genes.score_floors(frequency_V, length, mask, *cells, seed=data.settings.seed)
    return {
        name: [_row(data, "masked_genes", row) for row in rows] for name, rows in found.items()
    }


def rows_of_representation(
    representation: Representation,
    data: HeldOut,
    *,
    training_labels: np.ndarray | None = None,
    pictures: pathlib.Path | None = None,
    name: str = "",
) -> list[dict]:
    """Scores of a frozen representation at all tasks asked for, of which it is capable.

    Args:
      representation: of a model or a baseline.
      data: the cells.
      training_labels: cell types of the cells that it was pretrained on, or None.
      pictures: folder that gets them; None draws none.
      name: of the representation, in the pictures' names and titles.
    """
    if lacking := representation.lacks(data):
        return [
            _row(data, task, score.row())
            for task, names in NAMES.items()
            if task in data.settings.tasks and (task != "batch_mixing" or _has_batches(data))
            for score in _none(names, lacking)
        ]
    at = _Examined(representation, data, training_labels, pictures, name)
    tasks = {
        "cell_types": at.cell_types, "batch_mixing": at.batch_mixing, "confounds": at.confounds,
        "perturbation": at.perturbation, "noise": at.noise, "ontology": at.ontology,
        "gene_sets": at.gene_sets,
    }  # fmt: skip
    return [
        _row(data, task, score.row())
        for task, found in tasks.items()
        if task in data.settings.tasks
        for score in found()
    ]


def rows_of_classifiers(names: tuple[str, ...], data: HeldOut) -> dict[str, list[dict]]:
    """Cell-type scores of classifiers on expression, fitted where the probes are, by name."""
    names = tuple(name for name in classifiers.NAMES if name in names)
    divided = Split.of(data)
    if not names or data.counts is None or "cell_types" not in data.settings.tasks:
        return {}
    if divided.reason:
        nothing = Score("accuracy", None, split=divided.how, note=divided.reason).row()
        return {name: [_row(data, "cell_types", nothing)] for name in names}
    fit, test = divided.fit, divided.test
    fitted = classifiers.fit(
        data.counts[fit], data.totals[fit], data.labels[fit],
        donors=data.donors[fit], batches=data.batches[fit], seed=data.settings.seed, names=names,
    )  # fmt: skip
    found = classifiers.classify(
        fitted, data.counts[test], data.totals[test], data.labels[test],
        train_labels=data.labels[fit], donors=data.donors[test], seed=data.settings.seed,
        split=divided.how,
    )  # fmt: skip
    return {
        name: [_row(data, "cell_types", score.row()) for score in scored]
        for name, scored in found.items()
    }


def rows_of_responses(data: HeldOut) -> dict[str, list[dict]]:
    """Perturbation scores of the predictors that need no embedding, by name."""
    if "perturbation" not in data.settings.tasks:
        return {}
    found = screens.scores_of_baselines(data) if screens.is_screen(data) else {}
    if _has_stimulus(data):
        asked = tuple(name for name in perturbation.PREDICTORS if name != "embedding")
        for name, scored in _responses(data, np.zeros((len(data.rows), 1)), asked).items():
            found[name] = [*found.get(name, ()), *scored]
    return {
        name: [_row(data, "perturbation", score.row()) for score in scored]
        for name, scored in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Split:
    """Cells to fit probes on and to test them on; `reason`, where there are too few."""

    fit: np.ndarray
    test: np.ndarray
    how: str
    reason: str = ""

    @classmethod
    def of(cls, data: HeldOut) -> "Split":
        """By donor where every cell has one of several, else by batch, else by cell."""
        has_donors = (data.donors != "").all() and len(set(data.donors)) > 1
        group = "donor" if has_donors else "batch"
        grouped = (data.obs[group] != "").any()
        try:
            fit, test, how = cell_types.split(
                data.obs, label="cell_type", group=group if grouped else None,
                seed=data.settings.seed,
            )  # fmt: skip
        except ValueError as reason:  # no labels: the score says so
            return cls(np.array([], int), np.array([], int), "", str(reason))
        types = len(set(data.labels[fit]))
        reason = ""
        many = 2 * types > len(fit)  # as if cells were labelled by their names
        if types < 2 or many or len(fit) < cell_types.NEIGHBOURS or not len(test):
            reason = f"{len(fit)} cells of {types} types to fit on, {len(test)} to test on"
        return cls(fit, test, how, reason)


class _Examined:
    """A representation before one data set."""

    def __init__(self, representation, data, training_labels, pictures, name):
        self._representation, self._data, self._pictures = representation, data, pictures
        self._training_labels, self._name = training_labels, name
        self._split = Split.of(data)

    @functools.cached_property
    def _embedding(self) -> np.ndarray:
        return self._representation.embed(self._data)

    @functools.cached_property
    def _genes(self) -> dict[str, np.ndarray]:
        return self._representation.genes(self._data)

    @functools.cached_property
    def _predicted(self) -> dict[str, label_scores.Predictions]:
        fit, test = self._split.fit, self._split.test
        probes = cell_types.fit_probes(
            self._embedding[fit], self._data.labels[fit], seed=self._data.settings.seed
        )
        found = cell_types.predict(probes, self._embedding[test])
        if (classify := self._representation.classify) is not None:
            labels = self._data.labels[fit]
            found[PUBLISHED] = classify(self._embedding[fit], labels, self._embedding[test])
        return found

    @functools.cached_property
    def _no_probe(self) -> str:
        """Why probes say nothing of these cells; "" where they do."""
        try:
            return self._split.reason or (self._predicted and "")
        except NotScoredError as why:
            return str(why)

    def cell_types(self) -> list[Score]:
        data, split = self._data, self._split
        if self._no_probe:
            return _none(NAMES["cell_types"], self._no_probe, split=split.how)
        true = data.labels[split.test]
        for probe, predicted in self._predicted.items():
            title = f"{data.name}, {self._name}, {probe} probe"
            self._draw(f"confusion-{probe}", confusion.draw, true, predicted.labels, title)
        return [
            score
            for probe, predicted in self._predicted.items()
            for score in label_scores.score_labels(
                true, predicted, train_labels=data.labels[split.fit],
                pretrained_labels=self._training_labels, donors=data.donors[split.test],
                seed=data.settings.seed, split=split.how, prefix=f"{probe}_",
            )
        ]  # fmt: skip

    def batch_mixing(self) -> list[Score]:
        data = self._data
        if not _has_batches(data):
            return []
        known = (data.labels != "") & (data.batches != "")
        needed = 1 + max(batch_mixing.NEIGHBOURS, umaps.NEIGHBOURS)
        few = known.sum() < needed
        if few or data.counts is None:
            need = f"a label and a batch, {needed} needed" if few else "no counts"
            return _none(batch_mixing.NAMES, f"{known.sum()} cells have {need}")
        labels, batches = data.labels[known], data.batches[known]
        x_NxD = self._embedding[known]
        title = f"{data.name}, {self._name}"
        seed = data.settings.seed
        self._draw("umap", umaps.draw, x_NxD, labels, batches, title, seed=seed)
        before, donors = _expression(data)[known], data.donors[known]
        return batch_mixing.integration(x_NxD, labels, batches, before, donors=donors, seed=seed)

    def confounds(self) -> list[Score]:
        data = self._data
        return confounds.depth_shares(
            self._embedding, data.obs["length"].to_numpy(), data.totals,
            donors=data.donors, seed=data.settings.seed,
        )  # fmt: skip

    def perturbation(self) -> list[Score]:
        data, found = self._data, []
        if _has_stimulus(data) and self._representation.of_counts is None:
            why = "it is fitted to the cells that it embeds, the stimulated ones too"
            found += nothing_scored(("embedding",), "", why)["embedding"]
        elif _has_stimulus(data):
            found += _responses(data, self._embedding, ("embedding",))["embedding"]
        if screens.is_screen(data) and self._representation.genes is not None:
            found += screens.scores_of_genes(data, self._genes)
        return found

    def noise(self) -> list[Score]:
        data, split, represent = self._data, self._split, self._representation.of_counts
        reason = split.reason or (data.counts is None and "no counts") or (
            represent is None and "it embeds only the cells that it was fitted on"
        )
        if reason:
            return _none(NAMES["noise"], reason, split=split.how)
        cells = Cells(data.counts, data.totals, data.labels, data.ids, data.donors)
        try:
            classify = noise.fit_probe(represent, cells[split.fit])
        except NotScoredError as why:
            return _none(NAMES["noise"], str(why), split=split.how)
        said = {"seed": data.settings.seed, "split": split.how}
        return [
            *noise.gaussian(classify, cells[split.test], **said),
            *noise.thinning(classify, cells[split.test], **said),
        ]

    def ontology(self) -> list[Score]:
        data, seed = self._data, self._data.settings.seed
        terms, table = _ontology(data.settings.ontology, data.settings.ontology_labels)
        told = {"donors": data.donors, "seed": seed}
        found = onto_rwr.graph_agreement(
            self._embedding, data.labels, terms, table, batches=data.batches, **told
        )
        found += roughness.roughness(self._embedding, data.labels, **told)
        if self._no_probe:
            names = [f"{probe}_{s}" for probe in PROBES for s in ("lcad", "lcad_path")]
            return found + _none(names, self._no_probe, split=self._split.how)
        true, donors = data.labels[self._split.test], data.donors[self._split.test]
        for probe, predicted in self._predicted.items():
            scored = ontology.lcad(true, predicted.labels, terms, table, donors=donors, seed=seed)
            found += [
                dataclasses.replace(s, name=f"{probe}_{s.name}", split=self._split.how)
                for s in scored
            ]
        return found

    def gene_sets(self) -> list[Score]:
        data, settings = self._data, self._data.settings
        if self._representation.genes is None or data.counts is None:
            return []
        expression = gene_sets.expression_baseline(data.counts, data.totals)
        genes, found = np.array(data.corpus.vocabulary.genes), []
        labels = {n: gene_tables.read_labels(**of) for n, of in settings.gene_labels.items()}
        ids = read_gene_names(settings.gene_names, data.corpus.vocabulary.genes)
        sets = gene_tables.read_gmt(settings.gene_sets, ids) if settings.gene_sets else {}
        seed = settings.seed
        for kind, embedding in self._genes.items():
            asked = embedding, genes
            for name, of_genes in labels.items():
                of = f"{name}, {kind}"
                found += gene_sets.label_auroc(*asked, of_genes, expression, of=of, seed=seed)
            if sets:
                found += gene_sets.set_auroc(*asked, sets, expression, of=kind, seed=seed)
        return found

    def _draw(self, what: str, draw: Callable, *arguments, **options) -> None:
        if self._pictures is not None:
            self._pictures.mkdir(parents=True, exist_ok=True)
            path = self._pictures / f"{what}-{self._data.name}-{self._name}.png"
            draw(*arguments, path=path, **options)


@functools.lru_cache(maxsize=1)
def _ontology(path: str, labels: str) -> tuple[cell_ontology.Ontology, dict[str, str]]:
    table = cell_ontology.read_labels(labels or cell_ontology.LABELS)
    return cell_ontology.read_ontology(path), table


@functools.lru_cache(maxsize=8)
def _expression(data: HeldOut) -> np.ndarray:
    """The input that PCR compares with: 50 components of the labelled cells' expression."""
    known = (data.labels != "") & (data.batches != "")
    pca = baselines.fit_pca(data.counts[known], data.totals[known])
    return baselines.apply_pca(pca, data.counts, data.totals)


def _has_batches(data: HeldOut) -> bool:
    return data.name not in data.settings.no_batch_mixing


def _has_stimulus(data: HeldOut) -> bool:
    return data.name in data.settings.stimulus and data.counts is not None


def _responses(
    data: HeldOut, embedding_NxD: np.ndarray, predictors: tuple[str, ...]
) -> dict[str, list[Score]]:
    control, stimulated = data.settings.stimulus[data.name]
    try:
        return perturbation.stimulus_response(
            embedding_NxD, baselines.log_normalise(data.counts, data.totals), data.labels,
            data.batches, control, stimulated, donors=data.donors, seed=data.settings.seed,
            predictors=predictors,
        )  # fmt: skip
    except NotScoredError as why:
        return nothing_scored(predictors, "", str(why))


def _none(names: Iterable[str], note: str, split: str = "") -> list[Score]:
    return [Score(name, None, split=split, note=note) for name in names]


def _row(data: HeldOut, task: str, scored: dict) -> dict:
    """A row without what names the model: positions and reading are those of masked genes."""
    by = batch_mixing.packages() if task == "batch_mixing" else _versions()
    named = {"task": task, "dataset": data.name, "dataset_hash": data.hash}
    return {**named, "positions": None, "read_from": None, **scored,
            "evaluation_seed": data.settings.seed, "scored_by": by}  # fmt: skip


@functools.cache
def _versions() -> str:
    names = ("scikit-learn", "scipy", "scanpy")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
