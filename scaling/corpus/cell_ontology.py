"""The Cell Ontology's OBO file and cell-type labels -> terms."""

import csv
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx

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

    is_a: "networkx.DiGraph"
    names: dict[str, str]
    spelled: dict[str, frozenset[str]]
    release: str

    @functools.cached_property
    def _above(self) -> dict[str, dict[str, int]]:
        return {}

    def above(self, term: str) -> dict[str, int]:
        """A term and all its ancestors, each with the fewest is_a steps up to it."""
        import networkx  # here, as it takes a quarter of a second

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
    import networkx
    import obonet

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
