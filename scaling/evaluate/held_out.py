"""What is scored: its settings, and a corpus's held-out cells by data set."""

import dataclasses
import functools
import hashlib
import importlib.util
import pathlib

import numpy as np

from scaling.corpus import subsets
from scaling.corpus.shards import Corpus

ORDER_SEED = 0  # of the choice of cells where a data set has more than are scored
POOLS = ("genes", "cls")
TASKS = (
    "masked_genes", "cell_types", "batch_mixing", "confounds", "perturbation", "noise", "ontology",
    "gene_sets",
)  # fmt: skip
BASELINES = (
    "hvg", "pca", "parameter_free", "harmony", "scvi",
    "majority", "logistic", "random_forest", "svm",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is scored; the fields are those of `config.evaluate`.

    Attributes:
      layer: whose states are a cell's embedding; -2 is the layer before the last.
      cells: of a data set at most, chosen by hash.
      no_batch_mixing: data sets whose "batches" are no batches.
      seed: of splits, clusterings and resamples.
      pool: "genes", the mean over the genes' positions, or "cls", the first position's.
      tasks: of TASKS.
      baselines: of BASELINES.
      stimulus: {data set: (control, stimulated)}, two of its batches, for "perturbation".
      screens: {data set: its control}, for "perturbation": its batches are perturbed genes, as
        `gene_perturbation` reads them.
      gene_names: CSV file with the columns gene_name and ensembl_id, for perturbed genes and gene
        sets of symbols; "" for those that write genes as the vocabulary does.
      ontology: path of the Cell Ontology's OBO file, for "ontology"; "" for none.
      ontology_labels: CSV file with the columns label, term; "" for the table that comes along.
      gene_labels: {name: the arguments of `gene_tables.read_labels`}, for "gene_sets".
      gene_sets: GMT file, for "gene_sets"; "" for none.
    """

    layer: int
    cells: int
    no_batch_mixing: tuple[str, ...]
    seed: int
    pool: str = "genes"
    tasks: tuple[str, ...] = TASKS[:4]
    baselines: tuple[str, ...] = BASELINES[:2]
    stimulus: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    screens: dict[str, str] = dataclasses.field(default_factory=dict)
    gene_names: str = ""
    ontology: str = ""
    ontology_labels: str = ""
    gene_labels: dict[str, dict] = dataclasses.field(default_factory=dict)
    gene_sets: str = ""

    def __post_init__(self):
        if self.cells < 1:
            raise ValueError(f"evaluate.cells is {self.cells}; give the cells to score, 1 or more")
        if self.pool not in POOLS:
            raise ValueError(f"evaluate.pool is {self.pool!r}; give one of {POOLS}")
        if "scvi" in self.baselines and importlib.util.find_spec("scvi") is None:
            raise ValueError("evaluate.baselines has 'scvi'; install the extra, scaling[scvi]")
        for field, names in (("tasks", TASKS), ("baselines", BASELINES)):
            if unknown := sorted(set(getattr(self, field)) - set(names)):
                raise ValueError(f"evaluate.{field} has {unknown}; there are {names}")
        for task, needed in (("ontology", ("ontology",)), ("perturbation", ("stimulus", "screens")),
                             ("gene_sets", ("gene_labels", "gene_sets"))):  # fmt: skip
            if task in self.tasks and not any(getattr(self, name) for name in needed):
                fields = " or ".join(f"evaluate.{name}" for name in needed)
                raise ValueError(f"evaluate.tasks has {task!r}, which needs {fields}")
        named = [self.gene_names]
        if "ontology" in self.tasks:
            named += [self.ontology, self.ontology_labels]
        if "gene_sets" in self.tasks:
            named += [self.gene_sets, *(table.get("path") for table in self.gene_labels.values())]
        if missing := [path for path in named if path and not pathlib.Path(path).is_file()]:
            raise ValueError(f"evaluate names files that are not there: {', '.join(missing)}")


def held_out_sets(corpus: Corpus, settings: EvaluateSettings) -> dict[str, np.ndarray]:
    """Rows of the held-out cells of each data set, by its name."""
    found = {}
    held_out = corpus.obs["split"].to_numpy() == "held_out"
    for name in sorted(corpus.obs["dataset"][held_out].unique()):
        rows = np.flatnonzero(held_out & (corpus.obs["dataset"] == name).to_numpy())
        ids = corpus.obs["cell_id"].to_numpy()[rows]
        found[name] = np.sort(rows[subsets.order(ids, ORDER_SEED)[: settings.cells]])
    return found


class HeldOut:
    """The held-out cells of one data set, with what their scores need, read once.

    Attributes:
      corpus, name, rows, settings: as given.
      counts: CSR over the corpus's genes; None of cells of ready tokens.
      totals: counts of each cell over all measured genes.
      obs: the cells' annotations, rows numbered from 0.
      ids, labels, batches, donors: one name per cell, "" where unknown.
      hash: names the scored cells and their counts.
    """

    def __init__(self, corpus: Corpus, name: str, rows: np.ndarray, settings: EvaluateSettings):
        self.corpus, self.name, self.rows, self.settings = corpus, name, rows, settings
        self.counts = corpus.counts(rows) if corpus.has_counts(rows) else None
        self.obs = corpus.obs.iloc[rows].reset_index(drop=True)
        self.totals = self.obs["total"].to_numpy()
        columns = ("cell_id", "cell_type", "batch", "donor")
        self.ids, self.labels, self.batches, self.donors = (
            self.obs[column].to_numpy(str) for column in columns
        )

    @functools.cached_property
    def hash(self) -> str:
        """Hex; another for other cells, other counts or another order."""
        parts = self.obs[["cell_id", "fingerprint"]].astype(str)
        return hashlib.sha256(parts.to_csv(index=False).encode()).hexdigest()[:12]


def all_held_out(corpus: Corpus, settings: EvaluateSettings) -> list[HeldOut]:
    """Every data set's held-out cells.

    Raises:
      ValueError: the settings name a data set that has none, or a condition that it has not.
    """
    sets = held_out_sets(corpus, settings)
    obs = corpus.obs[(corpus.obs["split"] == "held_out").to_numpy()]
    batches = obs["batch"].astype(str).groupby(obs["dataset"].astype(str)).agg(set)
    conditions = {
        "stimulus": settings.stimulus,
        "screens": {name: (control,) for name, control in settings.screens.items()},
        "no_batch_mixing": dict.fromkeys(settings.no_batch_mixing, ()),
    }
    for field, named in conditions.items():
        for name, wanted in named.items():
            if name not in sets:
                raise ValueError(
                    f"evaluate.{field} names {name!r}, which has no held-out cell; the data sets "
                    f"with held-out cells are {', '.join(sets)}"
                )
            if missing := sorted(set(wanted) - batches[name]):
                raise ValueError(
                    f"evaluate.{field}.{name} names {', '.join(map(repr, missing))}, which no "
                    f"held-out cell has for its batch; there are {_some(sorted(batches[name]))}"
                )
    return [HeldOut(corpus, name, rows, settings) for name, rows in sets.items()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
