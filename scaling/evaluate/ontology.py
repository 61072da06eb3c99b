"""The Cell Ontology's OBO file and cell-type labels -> terms, and how far off wrong types are."""

import csv
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable

import networkx
import numpy as np
import obonet

from scaling.evaluate.intervals import Bootstrap, Score

EXACT = re.compile(r'^"(?P<text>.*)" EXACT\b')  # a synonym as OBO 1.2 and 1.4 write it
LABELS = pathlib.Path(__file__).with_name("cell_ontology_labels.csv")


@dataclasses.dataclass(frozen=True, eq=False)
class Ontology:
    """Terms of the Cell Ontology that are not obsolete.

    Attributes:
      is_a: edges from a term to its parents, by id ("CL:0000236").
      names: name of each term.
      spelled: terms by name and by exact synonym, lower case; several where one is ambiguous.
      release: of the file, as its header says.
    """

    is_a: networkx.DiGraph
    names: dict[str, str]
    spelled: dict[str, frozenset[str]]
    release: str

    @functools.cached_property
    def _above(self) -> dict[str, dict[str, int]]:
        return {}

    def above(self, term: str) -> dict[str, int]:
        """A term and all its ancestors, each with the fewest is_a steps up to it."""
        if term not in self._above:
            self._above[term] = networkx.single_source_shortest_path_length(self.is_a, term)
        return self._above[term]


def read_ontology(path: str | pathlib.Path) -> Ontology:
    """Reads `cl-basic.obo` or `cl.obo` (http://purl.obolibrary.org/obo/cl/cl-basic.obo).

    Only terms of the Cell Ontology itself (CL:...) and their is_a edges are kept: the full file
    imports terms of other ontologies.

    Raises:
      ValueError: not an OBO file, no term of the Cell Ontology, or is_a edges in a circle.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; download cl-basic.obo of the Cell Ontology")
    try:
        read = obonet.read_obo(path)
    except (ValueError, AssertionError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: not an OBO file ({error}); download it again") from error
    terms = {term: fields for term, fields in read.nodes(data=True) if "name" in fields}
    terms = {term: fields for term, fields in terms.items() if term.startswith("CL:")}
    if not terms:
        raise ValueError(f"{path}: no term whose id starts with CL:; pass the Cell Ontology")
    is_a = networkx.DiGraph()
    is_a.add_nodes_from(terms)
    edges = ((term, parent) for term, parent, kind in read.edges(keys=True) if kind == "is_a")
    is_a.add_edges_from((t, parent) for t, parent in edges if t in terms and parent in terms)
    if not networkx.is_directed_acyclic_graph(is_a):
        raise ValueError(f"{path}: its is_a edges run in a circle; download it again")
    spelled: dict[str, set[str]] = {}
    for term, fields in terms.items():
        found = (EXACT.match(synonym) for synonym in fields.get("synonym", []))
        for text in (fields["name"], *(match["text"] for match in found if match)):
            spelled.setdefault(text.lower(), set()).add(term)
    return Ontology(
        is_a,
        {term: fields["name"] for term, fields in terms.items()},
        {text: frozenset(of) for text, of in spelled.items()},
        str(read.graph.get("data-version", "without a version")),
    )


def read_labels(path: str | pathlib.Path = LABELS) -> dict[str, str]:
    """Reads an explicit table of labels: a CSV file with the columns `label` and `term`.

    An empty term says that no term holds this label's cells and no others; such a label is left
    out, whatever the ontology's synonyms say. Other columns are for the reader.

    Raises:
      ValueError: a column is missing, or a label stands twice.
    """
    table = {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"label", "term"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: columns {rows.fieldnames}; it needs `label` and `term`")
        for row in rows:
            if row["label"] in table:
                raise ValueError(f"{path}: label {row['label']!r} stands twice; keep one row")
            table[row["label"]] = (row["term"] or "").strip()
    return table


def match(
    labels: Iterable[str], ontology: Ontology, table: dict[str, str] | None = None
) -> tuple[dict[str, str], dict[str, str]]:
    """Terms of labels: by the table, else by id, name or exact synonym whatever the case.

    Nothing is guessed: no part of a label, no other kind of synonym, and none of several terms
    is taken.

    Args:
      labels: names; "" (unknown) is in neither result.
      ontology: of read_ontology.
      table: of read_labels; it goes before the ontology's own names.

    Returns:
      The term of each label that has one, and why of each that has none.

    Raises:
      ValueError: the table gives a label an id that the ontology lacks (or holds as obsolete).
    """
    table = table or {}
    terms, unmatched = {}, {}
    for label in sorted(set(map(str, labels)) - {""}):
        if label in table:
            if table[label] and table[label] not in ontology.names:
                raise ValueError(
                    f"label {label!r} is {table[label]!r} by the table, which is no term of the "
                    f"ontology ({ontology.release}) or obsolete: correct the table"
                )
            found = frozenset(filter(None, [table[label]]))
        elif label in ontology.names:
            found = frozenset([label])
        else:
            found = ontology.spelled.get(label.lower(), frozenset())
        if len(found) == 1:
            (terms[label],) = found
        elif found:
            unmatched[label] = f"names {', '.join(sorted(found))}"
        else:
            unmatched[label] = "no term by the table" if label in table else "no such name"
    return terms, unmatched


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
