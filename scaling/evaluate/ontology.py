"""Cell types of the Cell Ontology -> how far off wrong ones are."""

import numpy as np

from scaling.corpus.cell_ontology import Ontology, match
from scaling.evaluate.intervals import Bootstrap, Score


def left_out(labels: np.ndarray, terms: dict[str, str], unmatched: dict[str, str]) -> str:
    """A sentence on the cells whose label has no term; "" where there are none."""
    cells = {label: int((labels == label).sum()) for label in unmatched}
    said = [f"{n} of {label!r} ({unmatched[label]})" for label, n in cells.items()]
    if unknown := int((labels == "").sum()):
        said.append(f"{unknown} without a label")
    return f"cells left out: {', '.join(said)}" if said else ""


def common_ancestor(first: str, second: str, ontology: Ontology) -> tuple[str, int, int] | None:
    """Lowest common ancestor of two terms, and the is_a steps up to it from the first and second.

    The ontology is no tree: a term can have several parents, and two terms several lowest common
    ancestors. Of all common ancestors (a term is one of its own) this is the one with the fewest
    steps from both together, then the fewest from the first, then the lower id. None where the
    terms have no ancestor in common.
    """
    above, other = ontology.above(first), ontology.above(second)
    common = [(above[term] + other[term], above[term], term) for term in above.keys() & other]
    if not common:
        return None
    steps, up, term = min(common)
    return term, up, steps - up


def lcad(
    true: np.ndarray,
    predicted: np.ndarray,
    ontology: Ontology,
    table: dict[str, str] | None = None,
    *,
    donors: np.ndarray | None = None,
    seed: int = 0,
) -> list[Score]:
    """Lowest common ancestor distance (LCAD) between true and predicted types; lower is better.

    Wu et al. (Genome Biology 2025, scFM-Bench) take the is_a steps from the TRUE type up to its
    lowest common ancestor with the predicted one, and the mean over the wrongly predicted cells.
    It is 0 for a prediction below the true type (naive B cell for B cell) and hides how many
    cells are wrong, so beside it stand the mean over all cells and the steps of the whole way up
    and down again (`lcad_path`), which is 0 for the right term alone. Their LCA is whichever
    networkx returns first; ours is of common_ancestor.

    Args:
      true, predicted: one label per test cell, "" where unknown.
      ontology, table: of read_ontology and read_labels.
      donors: one name per cell, or None.
      seed: of the resamples.

    Returns:
      lcad and lcad_path, over all cells whose both labels have a term and over those of them
      with another term than the true one (`of` "errors"); notes say which cells are left out.

    Raises:
      ValueError: true and predicted differ in length.
    """
    true, predicted = np.asarray(true, str), np.asarray(predicted, str)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(
            f"true labels of shape {true.shape}, predicted of {predicted.shape}: one each per cell"
        )
    terms, unmatched = match(np.concatenate([true, predicted]), ontology, table)
    known = np.isin(true, list(terms)) & np.isin(predicted, list(terms))
    notes = [f"Cell Ontology {ontology.release}"]
    for side, labels in (("true", true), ("predicted", predicted)):
        if said := left_out(labels, terms, {x: unmatched[x] for x in unmatched if x in labels}):
            notes.append(f"by {side} label, {said}")
    up_N, path_N, wrong_N = _steps(true[known], predicted[known], terms, ontology)
    if apart := int(np.isnan(up_N).sum()):
        notes.append(f"{apart} cells of types without a common ancestor left out")
    bootstrap = Bootstrap(
        len(up_N), None if donors is None else np.asarray(donors, str)[known], seed=seed
    )
    scores = []
    for name, steps_N in (("lcad", up_N), ("lcad_path", path_N)):
        for of, values_N in (("", steps_N), ("errors", np.where(wrong_N, steps_N, np.nan))):
            empty = [] if np.isfinite(values_N).any() else [f"no cells{of and ' with '}{of}"]
            note = "; ".join(empty + notes)
            scores.append(bootstrap.mean(name, values_N, of=of, note=note))
    return scores


def _steps(
    true: np.ndarray, predicted: np.ndarray, terms: dict[str, str], ontology: Ontology
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps from the true term up to the ancestor, of the whole way (NaN: none), wrong or not."""
    pairs, pair_N = np.unique(np.stack([true, predicted], 1), axis=0, return_inverse=True)
    up, path, wrong = [], [], []
    for first, second in ((terms[a], terms[b]) for a, b in pairs):
        found = common_ancestor(first, second, ontology)
        up.append(found[1] if found else np.nan)
        path.append(found[1] + found[2] if found else np.nan)
        wrong.append(first != second)
    pair_N = pair_N.reshape(-1)
    return np.array(up, float)[pair_N], np.array(path, float)[pair_N], np.array(wrong, bool)[pair_N]
