"""True and predicted cell types in; scores overall, per class, rare, unseen, calibration out."""

import dataclasses

import numpy as np
from scipy import sparse

from scaling.evaluate.intervals import Bootstrap, Score, joined, ratio

RARE = 0.01  # of all labelled cells
BINS = 15  # of confidence, equally wide


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a classifier says of test cells.

    Attributes:
      labels: predicted cell type of each cell, str [N].
      classes: cell types that the columns of `probabilities` are of, str [C]; None without them.
      probabilities: float [N, C], rows adding up to 1; None where the classifier has none.
      note: how the classifier was made (what was tuned, and the choice), for every score.
    """

    labels: np.ndarray
    classes: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    note: str = ""


def score_labels(
    true_N: np.ndarray,
    predicted: Predictions,
    *,
    train_labels: np.ndarray,
    pretrained_labels: np.ndarray | None = None,
    donors: np.ndarray | None = None,
    seed: int = 0,
    split: str = "",
    prefix: str = "",
) -> list[Score]:
    """Score predicted cell types against the true ones, every score with a bootstrap interval.

    accuracy; macro_f1, the plain mean of F1 over the classes that the test labels hold (a class
    that the training cells lack counts with F1 = 0, a class predicted but not present adds no
    term); recall, precision, f1 and share_difference (predicted minus true share of the cells),
    of each class among the training, true or predicted labels; rare_recall, the mean recall over
    classes under 1 % of all labelled cells, training and test together.
    absent_from_reference: cells of types without a training cell, which no classifier can name
    (accuracy 0; confidence is the mean probability given to the name they got);
    in_reference_accuracy is of the others. The same for types absent from pretraining, with the
    mean recall over types.
    With probabilities: calibration_error, the expected calibration error over 15 equally wide
    bins of the predicted label's probability (Guo et al., ICML 2017); overconfidence, mean of that
    probability minus accuracy; brier, the mean over cells of the summed squared differences over
    classes (0 to 2; Brier 1950), a type that the classifier lacks having probability 0.
    Means over classes are, in a resample, over the classes that it holds: a class of a cell or
    two is missing from many, and the interval is then wide on the side of the others' mean.

    Args:
      true_N: cell type of each test cell, str, none blank.
      predicted: labels and perhaps probabilities of the same cells.
      train_labels: cell types that the classifier was fitted on, one per cell.
      pretrained_labels: cell types of the cells of pretraining, "" where unknown; None where
        nobody knows or nothing was pretrained.
      donors: of the test cells, or None; as for Bootstrap.
      seed: of the resamples.
      split: how cells were divided, kept in every score.
      prefix: put before every name, as "knn_".

    Returns:
      The scores, those of the whole first. What cannot be had is a score of None with a note.

    Raises:
      ValueError: shapes disagree, a test cell has no label, or probabilities are none.
    """
    true_N, train_labels = np.asarray(true_N, str), np.asarray(train_labels, str)
    _check(true_N, predicted)
    table = _Table(Bootstrap(len(true_N), donors, seed=seed), split, prefix, predicted.note)
    if not len(true_N):
        for name in ("accuracy", "macro_f1"):
            table.nothing(name, "no test cell")
        return table.scores
    labels_N = np.asarray(predicted.labels, str)
    classes = np.unique(np.concatenate([train_labels, true_N, labels_N]))
    true, named = np.searchsorted(classes, true_N), np.searchsorted(classes, labels_N)
    right = true == named
    one_hot = [_one_hot(true, len(classes)), _one_hot(named, len(classes))]
    one_hot.append(one_hot[0].multiply(right[:, None]))
    sums = table.sums(sparse.hstack(one_hot, format="csr"))
    true_SxC, named_SxC, right_SxC = np.split(sums, 3, axis=1)
    recall_SxC = ratio(right_SxC, true_SxC)
    f1_SxC = ratio(2 * right_SxC, true_SxC + named_SxC)
    present = true_SxC[0] > 0
    seen = np.isin(classes, train_labels)

    def accuracy(name: str, of_C: np.ndarray, note: str) -> None:
        value_S = ratio(right_SxC[:, of_C].sum(1), true_SxC[:, of_C].sum(1))
        table.add(name, value_S, int(true_SxC[0, of_C].sum()), note=note)

    everything = np.full(len(classes), True)
    accuracy("accuracy", everything, "")
    told = f"over {present.sum()} classes, {(present & ~seen).sum()} of them not in the reference"
    if drawn_out := classes[present & (true_SxC[1:] == 0).any(0)].tolist():
        told += f"; {len(drawn_out)} of few cells ({_names(drawn_out)}) miss in resamples, which "
        told += "moves the interval, up where they are told badly"
    macro_S = _mean_where(f1_SxC, true_SxC > 0)
    table.add("macro_f1", macro_S, len(true_N), note=told)

    labelled_C = np.bincount(np.searchsorted(classes, train_labels), minlength=len(classes))
    labelled_C = labelled_C + true_SxC[0]
    rare = labelled_C < RARE * labelled_C.sum()
    told = (
        f"{rare.sum()} of {len(classes)} classes under {RARE:.0%} of {labelled_C.sum():.0f} "
        f"labelled cells, {(rare & present).sum()} with test cells: {_names(classes[rare])}"
    )
    rare_cells = int(true_SxC[0, rare].sum())
    rare_S = _mean_where(recall_SxC[:, rare], true_SxC[:, rare] > 0)
    table.add("rare_recall", rare_S, rare_cells, note=told)

    absent = ~seen & present
    told = _told(classes[absent], int(true_SxC[0, absent].sum()), len(true_N), "the reference")
    accuracy("absent_from_reference_accuracy", absent, told)
    accuracy("in_reference_accuracy", seen & present, "")
    if pretrained_labels is None:
        for name in ("absent_from_pretraining_accuracy", "absent_from_pretraining_recall",
                     "in_pretraining_accuracy"):  # fmt: skip
            table.nothing(name, "cell types of pretraining not given")
    else:
        pretrained = np.asarray(pretrained_labels, str)
        known = np.isin(classes, pretrained)
        lacking = present & ~known
        told = _told(
            classes[lacking], int(true_SxC[0, lacking].sum()), len(true_N), "pretraining"
        ) + (
            f"; {(lacking & ~seen).sum()} of these types not in the reference either; "
            f"{(pretrained == '').sum()} of {pretrained.size} pretraining cells have no label"
        )
        accuracy("absent_from_pretraining_accuracy", lacking, told)
        mean_S = _mean_where(recall_SxC[:, lacking], true_SxC[:, lacking] > 0)
        table.add(
            "absent_from_pretraining_recall", mean_S, int(true_SxC[0, lacking].sum()), note=told
        )
        accuracy("in_pretraining_accuracy", present & known, "")
    _calibration(table, predicted, true_N, labels_N, right, ~seen[true])

    total_Sx1 = true_SxC.sum(1, keepdims=True)
    share_SxC = (named_SxC - true_SxC) / total_Sx1
    precision_SxC = ratio(right_SxC, named_SxC)
    for c, name in enumerate(classes):
        cells, given = int(true_SxC[0, c]), int(named_SxC[0, c])
        said = "" if seen[c] else "not in the reference"
        said_here = said if cells else "no test cell"
        table.add("recall", recall_SxC[:, c], cells, name, said_here)
        table.add("precision", precision_SxC[:, c], given, name, said if given else "never named")
        table.add("f1", f1_SxC[:, c], cells, name, said_here)
        table.add("share_difference", share_SxC[:, c], len(true_N), name, said)
    return table.scores


def _calibration(table, predicted, true_N, labels_N, right_N, absent_N) -> None:
    """Scores of the probabilities; absent_N marks cells of types that the reference lacks."""
    names = ("calibration_error", "overconfidence", "brier", "absent_from_reference_confidence")
    if predicted.probabilities is None:
        for name in names:
            table.nothing(name, "the classifier gives no probabilities")
        return
    p_NxC = np.asarray(predicted.probabilities, np.float64)
    column = {name: c for c, name in enumerate(np.asarray(predicted.classes, str).tolist())}
    rows = np.arange(len(true_N))
    sure_N = p_NxC[rows, [column[name] for name in labels_N.tolist()]]
    true_column_N = np.array([column.get(name, -1) for name in true_N.tolist()])
    of_truth_N = np.where(true_column_N >= 0, p_NxC[rows, true_column_N], 0.0)
    brier_N = np.square(p_NxC).sum(1) - 2 * of_truth_N + 1
    bin_N = np.clip(np.ceil(sure_N * BINS).astype(int) - 1, 0, BINS - 1)
    gap_N = sure_N - right_N
    per_cell = np.column_stack([gap_N, brier_N, absent_N * sure_N, absent_N, np.ones(len(rows))])
    in_bins_NxB = _one_hot(bin_N, BINS).multiply(gap_N[:, None])
    sums = table.sums(sparse.hstack([in_bins_NxB, sparse.csr_matrix(per_cell)], format="csr"))
    gap_S, brier_S, sure_S, absent_S, cells_S = sums[:, BINS:].T
    told = (
        f"{BINS} equally wide bins; the noise of small bins adds to it, the more so in resamples, "
        "so that the interval lies high"
    )
    table.add(names[0], np.abs(sums[:, :BINS]).sum(1) / cells_S, len(rows), note=told)
    table.add(names[1], gap_S / cells_S, len(rows))
    table.add(names[2], brier_S / cells_S, len(rows), note="0 best, 2 worst")
    absent = int(absent_N.sum())
    told = "" if absent else "all test cells are of types in the reference"
    table.add(names[3], ratio(sure_S, absent_S), absent, note=told)


class _Table:
    """Scores as they are added, all over the same resamples, drawn once for many scores."""

    def __init__(self, bootstrap: Bootstrap, split: str, prefix: str, note: str):
        self._bootstrap, self._split, self._prefix, self._note = bootstrap, split, prefix, note
        self.scores = []

    def sums(self, design_NxK: sparse.csr_matrix) -> np.ndarray:
        """Column sums over all cells, then over those of each resample: float64 [1 + S, K]."""
        return self._bootstrap.values(lambda weights_SxN: weights_SxN @ design_NxK)

    def add(self, name: str, value_S: np.ndarray, n: int, of: str = "", note: str = "") -> None:
        """A score from its value over all cells and over each resample's."""
        told = {"n": n, "of": str(of), "split": self._split, "note": note}
        score = self._bootstrap.of_values(self._prefix + name, value_S, **told)
        self.scores.append(dataclasses.replace(score, note=joined(score.note, self._note)))

    def nothing(self, name: str, note: str) -> None:
        self.add(name, np.full(1, np.nan), 0, note=note)


def _one_hot(codes_N: np.ndarray, width: int) -> sparse.csr_matrix:
    n = len(codes_N)
    return sparse.csr_matrix((np.ones(n), (np.arange(n), codes_N)), shape=(n, width))



def _mean_where(values_SxC: np.ndarray, counted_SxC: np.ndarray) -> np.ndarray:
    return ratio(np.where(counted_SxC, values_SxC, 0.0).sum(1), counted_SxC.sum(1))


def _told(names: np.ndarray, cells: int, all_cells: int, where: str) -> str:
    if not len(names):
        return f"every type of the test cells is in {where}"
    return f"{cells} of {all_cells} test cells, {len(names)} types: {_names(names)}"


def _names(names: np.ndarray) -> str:
    return ", ".join(names) or "none"


def _check(true_N: np.ndarray, predicted: Predictions) -> None:
    if true_N.ndim != 1 or np.shape(predicted.labels) != true_N.shape:
        raise ValueError(
            f"{np.shape(true_N)} true and {np.shape(predicted.labels)} predicted labels: pass one "
            "of each per test cell"
        )
    if (true_N == "").any():
        raise ValueError(
            f"{(true_N == '').sum()} test cells have no label: leave them out before scoring"
        )
    if predicted.probabilities is None:
        return
    p_NxC, classes = np.asarray(predicted.probabilities), np.asarray(predicted.classes, str)
    if p_NxC.shape != (len(true_N), classes.size):
        raise ValueError(
            f"probabilities of shape {p_NxC.shape} for {len(true_N)} cells and {classes.size} "
            "classes: pass cells x classes"
        )
    if not (p_NxC >= 0).all() or not np.allclose(p_NxC.sum(1), 1, atol=1e-4):
        raise ValueError("probabilities must not be negative and add up to 1 in every cell")
    if unknown := set(predicted.labels) - set(classes):
        raise ValueError(f"predicted {sorted(unknown)} are none of the classes {list(classes)}")
