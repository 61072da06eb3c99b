"""A pretrained encoder and a corpus with labels -> classes of its test cells, and their scores."""

import dataclasses

import numpy as np
import pandas as pd
from scipy.special import softmax
from sklearn.dummy import DummyClassifier

from scaling.corpus import subsets
from scaling.corpus.shards import Corpus
from scaling.evaluate import classifier, label_scores
from scaling.evaluate.classifier import Classifier, Labelled
from scaling.evaluate.held_out import ORDER_SEED
from scaling.evaluate.intervals import Score
from scaling.evaluate.seen import UNKNOWN, Seen
from scaling.evaluate.tuning import FinetuneSettings
from scaling.pretrain.model import ModelSettings


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Classes of test cells.

    Attributes:
      cells: ids, str [N].
      true, predicted: names of classes, str [N].
      probabilities: float64 [N, classes].
      classes: names, in the order of the probabilities.
      donors: str [N], "" where unknown.
      split: how the cells were divided.
      note: what was left out.
      losses: of each training step.
      train_labels: class of each cell trained on.
      params: of the `Classifier`.
    """

    cells: np.ndarray
    true: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]
    donors: np.ndarray
    split: str
    note: str
    losses: list[float]
    train_labels: np.ndarray
    params: dict


def finetune_cells(
    encoder: dict, model: ModelSettings, corpus: Corpus, settings: FinetuneSettings,
    devices: list | None = None, seen: Seen = UNKNOWN,
) -> Predictions:
    """Fine-tunes on labels of a corpus's cells and classifies those of the test side.

    Args:
      encoder, model: parameters and settings of a RankEncoder over the corpus's vocabulary.
      corpus: its cells' `cell_type` is the label; cells of all its splits are used.
      settings: of the fine-tuning.
      devices: see `classifier.train`.
      seen: of the corpus, by the encoder; by default that is not known.

    Raises:
      ValueError: too few labels, classes, donors or steps, or no test cell, see `Seen.unseen`.
    """
    note: list[str] = []
    obs = corpus.obs[(corpus.obs["cell_type"] != "").to_numpy()]
    if len(corpus.obs) > len(obs):
        note.append(f"{len(corpus.obs) - len(obs)} cells without a label left out")
    obs = some(obs, settings)
    labels, counts = np.unique(obs["cell_type"].to_numpy(str), return_counts=True)
    rare = counts < settings.min_share * counts.sum()
    if rare.any():
        named = ", ".join(f"{n} ({c})" for n, c in zip(labels[rare], counts[rare], strict=True))
        note.append(f"classes below {settings.min_share:.2%} of the cells left out: {named}")
    obs, classes = obs[~obs["cell_type"].isin(labels[rare])], labels[~rare].tolist()
    if len(classes) < 2:
        raise ValueError(
            f"{corpus.folder}: the labels of its cells are {classes}, and a classifier needs two; "
            "name their column by data.cell_type (and another --workdir), or lower "
            "finetune.min_share"
        )
    train, test, split = divide(obs, settings, note, seen)
    taught = sorted(set(train["cell_type"]))
    if len(taught) < 2:
        raise ValueError(
            f"{corpus.folder}: all training cells are of the class {taught[0]!r} ({split}); give "
            "another finetune.seed, or finetune.split=cell"
        )
    if missing := sorted(set(classes) - set(taught)):
        note.append(f"classes without a training cell, never predicted: {', '.join(missing)}")
    numbers = pd.Categorical(train["cell_type"], classes).codes
    module = head(model, corpus, settings, len(classes))
    cells = Labelled(corpus, train.index.to_numpy(), numbers)
    params, losses = classifier.train(encoder, module, settings, cells, devices)
    asked = test.index.to_numpy(), settings.buckets, devices
    found = np.empty((len(test), len(classes)))
    for places, _, logits in classifier.logits(params, module, corpus, *asked):
        found[places] = softmax(logits.astype(np.float64), axis=1)
    ids, true, donors = (test[name].to_numpy(str) for name in ("cell_id", "cell_type", "donor"))
    predicted = np.array(classes)[found.argmax(1)]
    about = tuple(classes), donors, split, "; ".join(note), losses
    taught = train["cell_type"].to_numpy(str)
    return Predictions(ids, true, predicted, found, *about, taught, params)


def scores(found: Predictions, seed: int = 0) -> list[Score]:
    """All scores of a classification, see `label_scores.score_labels`.

    majority_accuracy and majority_macro_f1 are those of their floor, the commonest class of the
    training cells.
    """
    taught = found.train_labels
    told = {"train_labels": taught, "donors": found.donors, "split": found.split, "seed": seed}
    predicted = label_scores.Predictions(
        found.predicted, np.array(found.classes), found.probabilities, found.note
    )
    commonest = DummyClassifier().fit(taught, taught).predict(found.true)
    floor = label_scores.Predictions(commonest, note=found.note)
    of_floor = label_scores.score_labels(found.true, floor, prefix="majority_", **told)
    shown = {"majority_accuracy", "majority_macro_f1"}
    return [
        *label_scores.score_labels(found.true, predicted, **told),
        *(score for score in of_floor if score.name in shown),
    ]


def some(obs: pd.DataFrame, settings: FinetuneSettings) -> pd.DataFrame:
    """The cells, or as many as `settings.cells` of them, chosen by hash."""
    if not settings.cells or len(obs) <= settings.cells:
        return obs
    ranked = subsets.order(obs["cell_id"].to_numpy(), ORDER_SEED)
    return obs.iloc[np.sort(ranked[: settings.cells])]


def divide(
    obs: pd.DataFrame, settings: FinetuneSettings, note: list[str], seen: Seen
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Training cells, test cells, and how they were divided; what is left out is noted.

    Test cells are whole donors, in the order of their hash under the seed until `test_share` is
    reached, or single cells. Of these, cells are left out that `Seen.unseen` says cannot be tested
    on, and training cells that equal a test cell.

    Raises:
      ValueError: fewer than two donors are known, where donors divide, or no test cell is left.
    """
    by_donor = settings.split == "donor"
    if by_donor:
        known = (obs["donor"] != "").to_numpy()
        if not known.all():
            note.append(f"{(~known).sum()} cells without a donor left out")
        obs = obs[known]
        if obs["donor"].nunique() < 2:
            raise ValueError(
                f"finetune.split is donor, and {len(obs)} labelled cells are of "
                f"{obs['donor'].nunique()} donors; name their column by data.donor, or give "
                "finetune.split=cell"
            )
    groups = obs.assign(batch="") if by_donor else obs.assign(batch="", donor="")
    tested, _ = subsets.hold_out(groups, settings.test_share, settings.seed)
    train, test = obs[~tested], obs[tested]
    unseen = seen.unseen(test.index.to_numpy())
    if not unseen.all():
        note.append(
            f"{(~unseen).sum()} test cells left out, on which, and on their "
            f"{', '.join(seen.annotations)}, the run was pretrained"
        )
    test = test[unseen]
    if told := seen.note(test.index.to_numpy(), "test"):
        note.append(told)
    alike = train["fingerprint"].isin(test["fingerprint"]).to_numpy()
    if alike.any():
        note.append(f"{alike.sum()} training cells equal to a test cell left out")
    if alike.all():
        raise ValueError("every training cell equals a test cell; give cells that differ")
    how = f"by cell: {len(test)} of {len(obs)} drawn to test on"
    if by_donor:
        donors = sorted(set(test["donor"]))
        how = f"by donor: tested on {', '.join(donors)}, of {obs['donor'].nunique()}"
    return train[~alike], test, how


def head(model: ModelSettings, corpus: Corpus, settings: FinetuneSettings, classes: int):
    """The classifier of so many classes, in float32."""
    genes, model = corpus.vocabulary, dataclasses.replace(model, dtype="float32")
    return Classifier(
        model, len(genes), len(genes.special), classes, settings.pooling, settings.dropout
    )
