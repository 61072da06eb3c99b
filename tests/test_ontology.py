"""Labels become terms by rule, wrong types are as far off as brute force says."""

import itertools

import anndata
import networkx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.corpus import cell_ontology
from scaling.corpus.cell_ontology import Ontology
from scaling.evaluate import onto_rwr, ontology

#            cell
#        white       red          platelet stands alone: no parent
#     T     B   mono
#   CD4 CD8    / (mono is_a red too)
#   naive
OBO = """format-version: 1.2
data-version: tiny/2024-01-01
ontology: cl

[Term]
id: CL:1
name: cell

[Term]
id: CL:2
name: white cell
synonym: "Leuco" EXACT []
synonym: "pale" BROAD []
is_a: CL:1 ! cell

[Term]
id: CL:3
name: red cell
is_a: CL:1

[Term]
id: CL:4
name: T cell
synonym: "twin" EXACT []
is_a: CL:2

[Term]
id: CL:5
name: B cell
synonym: "twin" EXACT []
is_a: CL:2

[Term]
id: CL:6
name: monocyte
is_a: CL:2
is_a: CL:3
relationship: develops_from CL:4

[Term]
id: CL:7
name: CD4 T cell
is_a: CL:4

[Term]
id: CL:8
name: CD8 T cell
is_a: CL:4

[Term]
id: CL:9
name: naive CD4 T cell
is_a: CL:7

[Term]
id: CL:10
name: platelet

[Term]
id: CL:11
name: obsolete lymph cell
is_obsolete: true

[Term]
id: GO:1
name: a process
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Ontology:
    path = tmp_path_factory.mktemp("obo") / "tiny.obo"
    path.write_text(OBO)
    return cell_ontology.read_ontology(path)


def values(scores):
    return {(score.name, score.of): score.value for score in scores}


def test_only_is_a_edges_between_living_terms_of_the_ontology_are_read(tiny):
    assert set(tiny.names) == {f"CL:{number}" for number in range(1, 11)}
    assert set(tiny.is_a.successors("CL:6")) == {"CL:2", "CL:3"}  # develops_from is no step
    assert tiny.release == "tiny/2024-01-01"
    assert tiny.above("CL:9") == {"CL:9": 0, "CL:7": 1, "CL:4": 2, "CL:2": 3, "CL:1": 4}


def test_labels_match_by_table_then_id_name_or_exact_synonym(tiny):
    labels = ["t CELL", "leuco", "CL:6", "pale", "twin", "T", "obsolete lymph cell", "mine", "no"]
    terms, unmatched = cell_ontology.match(
        [*labels, "B cell", ""], tiny, {"mine": "CL:9", "no": "", "B cell": "CL:3"}
    )
    assert terms == {
        "t CELL": "CL:4", "leuco": "CL:2", "CL:6": "CL:6", "mine": "CL:9", "B cell": "CL:3"
    }  # fmt: skip
    assert unmatched == {
        "pale": "no such name",
        "twin": "names CL:4, CL:5",
        "T": "no such name",
        "obsolete lymph cell": "no such name",
        "no": "no term by the table",
    }


def test_a_table_of_unknown_terms_or_twice_a_label_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="'mine' is 'CL:11' by the table, which is no term"):
        cell_ontology.match(["mine"], tiny, {"mine": "CL:11"})
    path = tmp_path / "labels.csv"
    path.write_text("label,term\na,CL:1\nb, CL:2 \nc,\n")
    assert cell_ontology.read_labels(path) == {"a": "CL:1", "b": "CL:2", "c": ""}
    path.write_text("label,term\na,CL:1\na,CL:2\n")
    with pytest.raises(ValueError, match="'a' stands twice"):
        cell_ontology.read_labels(path)
    path.write_text("label,id\na,CL:1\n")
    with pytest.raises(ValueError, match="needs `label` and `term`"):
        cell_ontology.read_labels(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("<html>404</html>\n", "tiny.obo: "),
        ("[Term]\nid: GO:1\nname: a\n", "no term whose id starts with CL:"),
        ("[Term]\nid: CL:1\nname: a\nis_a: CL:2\n\n[Term]\nid: CL:2\nname: b\nis_a: CL:1\n",
         "in a circle"),
    ],
)  # fmt: skip
def test_what_is_no_cell_ontology_is_refused(text, message, tmp_path):
    path = tmp_path / "tiny.obo"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        cell_ontology.read_ontology(path)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("CL:4", "CL:4", ("CL:4", 0, 0)),
        ("CL:7", "CL:8", ("CL:4", 1, 1)),
        ("CL:4", "CL:9", ("CL:4", 0, 2)),
        ("CL:9", "CL:4", ("CL:4", 2, 0)),
        ("CL:6", "CL:5", ("CL:2", 1, 1)),
        ("CL:6", "CL:3", ("CL:3", 1, 0)),
        ("CL:10", "CL:3", None),
    ],
)
def test_common_ancestors_of_a_small_graph(tiny, first, second, expected):
    assert ontology.common_ancestor(first, second, tiny) == expected


@given(edges=st.sets(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20))
@settings(max_examples=60)
def test_common_ancestors_of_any_graph_are_those_of_all_pairs_of_paths(edges):
    is_a = networkx.DiGraph([(f"CL:{max(e)}", f"CL:{min(e)}") for e in edges if e[0] != e[1]])
    graph = Ontology(is_a, {}, {}, "")
    far = networkx.floyd_warshall(is_a)
    for a, b in itertools.product(is_a, is_a):
        steps = [far[a][c] + far[b][c] for c in is_a]
        found = ontology.common_ancestor(a, b, graph)
        if min(steps) == np.inf:
            assert found is None
            continue
        assert found[1] + found[2] == min(steps)
        assert (found[1], found[2]) == (far[a][found[0]], far[b][found[0]])
        other_way = ontology.common_ancestor(b, a, graph)
        assert found[1] + found[2] == other_way[1] + other_way[2]


def test_lcad_is_the_mean_over_cells_and_over_errors(tiny):
    true = np.array(["T cell", "CD4 T cell", "B cell", "monocyte", "", "strange", "T cell"])
    predicted = np.array(["T cell", "CD8 T cell", "naive CD4 T cell", "B cell", "T cell", "T cell",
                          "naive CD4 T cell"])  # fmt: skip
    scores = ontology.lcad(true, predicted, tiny)
    assert values(scores) == {
        ("lcad", ""): (0 + 1 + 1 + 1 + 0) / 5,
        ("lcad", "errors"): (1 + 1 + 1 + 0) / 4,
        ("lcad_path", ""): (0 + 2 + 4 + 2 + 2) / 5,
        ("lcad_path", "errors"): (2 + 4 + 2 + 2) / 4,
    }
    assert [score.n for score in scores] == [5, 4, 5, 4]
    for score in scores:
        assert score.low <= score.value <= score.high and score.interval == "cells"
        assert "1 of 'strange' (no such name), 1 without a label" in score.note
        assert "tiny/2024-01-01" in score.note


def test_lcad_without_errors_or_cells_says_so(tiny):
    right = np.array(["T cell", "B cell"] * 5)
    scores = {(s.name, s.of): s for s in ontology.lcad(right, right, tiny)}
    assert scores["lcad", ""].value == 0 == scores["lcad_path", ""].value
    assert scores["lcad", "errors"].value is None
    assert scores["lcad", "errors"].note.startswith("no cells with errors")
    nothing = ontology.lcad(np.array(["x", "y"]), right[:2], tiny)
    assert all(s.value is None and "1 of 'x' (no such name)" in s.note for s in nothing)
    apart = ontology.lcad(np.array(["platelet", "T cell"]), np.array(["T cell"] * 2), tiny)
    assert apart[0].value == 0 and "1 cells of types without a common ancestor" in apart[0].note


def test_lcad_draws_donors_of_the_scored_cells(tiny):
    true = np.array(["T cell", "B cell", "strange"] * 20)
    donors = np.array([f"d{number // 6}" for number in range(60)])
    (first, *_) = ontology.lcad(true, np.array(["CD4 T cell"] * 60), tiny, donors=donors)
    assert first.interval == "10 donors" and first.n == 40
    with pytest.raises(ValueError, match="one each per cell"):
        ontology.lcad(true, true[:3], tiny)


def test_wrong_types_near_by_score_below_wrong_types_far_off(tiny):
    true = np.array(["CD4 T cell"] * 20)
    near = values(ontology.lcad(true, np.array(["CD8 T cell"] * 20), tiny))
    far = values(ontology.lcad(true, np.array(["red cell"] * 20), tiny))
    assert all(near[key] < far[key] for key in near)


# --- scGraph-OntoRWR ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest() -> Ontology:
    """A binary tree of 31 terms, 16 of them leaves; ids are those of a heap."""
    is_a = networkx.DiGraph([(f"CL:{n}", f"CL:{n // 2}") for n in range(2, 32)])
    return Ontology(is_a, {term: term for term in is_a}, {}, "a tree")


LEAVES = [f"CL:{number}" for number in range(16, 32)]


def literal_diffusion(graph: networkx.DiGraph, restart: float = 0.7) -> np.ndarray:
    """A walk, step by step, and the decomposition of its logarithm by a full SVD."""
    terms = list(graph)
    n = len(terms)
    q_TxT = np.zeros((n, n))
    for start in range(n):
        at_T = np.eye(n)[start]
        for _ in range(200):
            next_T = restart * np.eye(n)[start]
            for here, share in enumerate(at_T):
                near = [*graph.successors(terms[here]), *graph.predecessors(terms[here])]
                for term in near:
                    next_T[terms.index(term)] += (1 - restart) * share / len(near)
            at_T = next_T
        q_TxT[start] = at_T
    u, s, _ = np.linalg.svd(np.log(q_TxT + 1 / n**2) - np.log(1 / n**2))
    return q_TxT, u * np.sqrt(s)


def test_a_walk_ends_where_steps_one_by_one_end(forest, tiny):
    q_TxT, diffusion = literal_diffusion(forest.is_a)
    np.testing.assert_allclose(onto_rwr.walk(forest), q_TxT, atol=1e-12)
    np.testing.assert_allclose(onto_rwr.walk(tiny).sum(1), 1)
    assert onto_rwr.walk(tiny)[list(tiny.is_a).index("CL:10")].max() == pytest.approx(1)
    rows = [list(forest.is_a).index(term) for term in LEAVES]
    apart = np.linalg.norm(diffusion[rows][:, None] - diffusion[rows], axis=2)
    np.testing.assert_allclose(onto_rwr.term_distances(forest, LEAVES), apart, atol=1e-6)
    siblings = onto_rwr.term_distances(forest, LEAVES)[0, 2:4]
    assert siblings[0] == siblings[1]
    assert apart[0, 1] < apart[0, 2] < apart[0, 15]


def literal_agreement(x_NxD, labels, forest, method) -> float:
    """As scFM-Bench's frames have it, but for the type itself."""
    types = sorted(set(labels))
    means = pd.DataFrame({t: trimmed(x_NxD[labels == t]) for t in types}).T
    apart = pd.DataFrame(
        [[np.linalg.norm(means.loc[a] - means.loc[b]) for b in types] for a in types], types, types
    )
    apart = apart / apart.max()
    reference = pd.DataFrame(onto_rwr.term_distances(forest, types), types, types)
    return np.mean(
        [apart[t].drop(t).corr(reference[t].drop(t), method=method) for t in types]
    )


def trimmed(x_MxD, share=0.2):
    cut = int(share * len(x_MxD))
    return np.sort(x_MxD, 0)[cut : len(x_MxD) - cut].mean(0)


def tree_cells(forest, per_type=15, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(LEAVES, per_type)
    _, diffusion = literal_diffusion(forest.is_a)
    centre = {term: diffusion[list(forest.is_a).index(term)] for term in LEAVES}
    x_NxD = np.array([centre[label] for label in labels])
    return x_NxD + noise * rng.normal(size=x_NxD.shape), labels


def test_agreement_is_that_of_frames_and_trimmed_means(forest):
    x_NxD, labels = tree_cells(forest)
    x_NxD[::7] += 30  # trimmed away
    scores = onto_rwr.graph_agreement(x_NxD, labels, forest)
    for score, method in zip(scores[:2], ("pearson", "spearman"), strict=True):
        assert score.name == f"onto_rwr_{method}" and score.n == len(labels)
        expected = literal_agreement(x_NxD.astype(np.float32), labels, forest, method)
        assert score.value == pytest.approx(expected, abs=1e-5)
        if score.low is None:  # near the end of its range
            assert score.value > 0.9 and "; no interval: " in score.note
        else:
            assert score.low <= score.value <= score.high
        assert "16 types" in score.note and "restart 0.7" in score.note


def test_the_ontologys_own_distances_agree_and_shuffled_types_do_not(forest):
    x_NxD, labels = tree_cells(forest, noise=0)
    pearson, spearman, *chance = onto_rwr.graph_agreement(x_NxD, labels, forest)
    assert pearson.value == pytest.approx(1, abs=1e-5)
    assert spearman.value > 0.85  # rounding in the embedding breaks the tree's ties
    for score in chance:  # nothing to know, and types of one size: no better than any
        assert score.of == "shuffled labels" and abs(score.value) < 0.15 and score.low is None
    swapped = dict(zip(LEAVES, np.random.default_rng(1).permutation(LEAVES), strict=True))
    shuffled = np.array([swapped[label] for label in labels])
    pearson, spearman, *chance = onto_rwr.graph_agreement(x_NxD, shuffled, forest)
    assert abs(pearson.value) < 0.25 and abs(spearman.value) < 0.25


def test_a_shift_of_batches_moves_pooled_types_only(forest):
    """Half of the types are mostly in the second batch, which lies far away."""
    x_NxD, labels = tree_cells(forest, per_type=60)
    rng = np.random.default_rng(0)
    odd = np.isin(labels, LEAVES[::2])
    batch = np.where(rng.random(len(labels)) < np.where(odd, 0.7, 0.3), "far", "near")
    x_NxD[batch == "far"] += 5
    found = values(onto_rwr.graph_agreement(x_NxD, labels, forest, batches=batch))
    assert found["onto_rwr_pearson", ""] < 0.5 < 0.9 < found["onto_rwr_pearson", "within batches"]
    one = values(onto_rwr.graph_agreement(x_NxD, labels, forest, batches=np.full(960, "a")))
    for name in ("onto_rwr_pearson", "onto_rwr_spearman"):
        assert one[name, "within batches"] == pytest.approx(one[name, ""])


def test_rare_types_and_small_batches_are_left_out_and_named(forest):
    x_NxD, labels = tree_cells(forest)
    labels[labels == "CL:17"] = np.array(["CL:17"] * 9 + ["odd"] * 6)
    batch = np.where(np.arange(240) < 99, "small", "large")
    scores = onto_rwr.graph_agreement(x_NxD, labels, forest, batches=batch)
    assert "15 types" in scores[0].note and scores[0].n == 225
    assert "below 10 cells: CL:17" in scores[0].note
    assert "6 of 'odd' (no such name)" in scores[0].note
    assert scores[4].of == "within batches" and scores[4].note.startswith("1 batches of 100")


def test_a_large_batch_of_rare_types_says_nothing(forest):
    x_NxD, labels = tree_cells(forest, per_type=60)
    nth = np.array([(labels[:i] == labels[i]).sum() for i in range(len(labels))])
    thin = np.where(nth < 9, "thin", "thick")  # nine cells of each type
    assert (thin == "thin").sum() >= 100
    whole = values(onto_rwr.graph_agreement(x_NxD, labels, forest, batches=thin))
    alone = values(onto_rwr.graph_agreement(
        x_NxD[nth >= 9], labels[nth >= 9], forest, batches=thin[nth >= 9]
    ))  # fmt: skip
    for name in ("onto_rwr_pearson", "onto_rwr_spearman"):
        assert whole[name, "within batches"] == pytest.approx(alone[name, "within batches"])


def test_two_labels_of_one_term_are_one_type(forest):
    x_NxD, labels = tree_cells(forest)
    renamed = np.where((labels == "CL:16") & (np.arange(240) % 2 == 0), "mine", labels)
    (alike, *_) = onto_rwr.graph_agreement(x_NxD, renamed, forest, {"mine": "CL:16"})
    assert alike.value == onto_rwr.graph_agreement(x_NxD, labels, forest)[0].value


def test_too_few_types_or_a_collapsed_embedding_have_no_agreement(forest):
    x_NxD, labels = tree_cells(forest)
    four = np.isin(labels, LEAVES[:4])
    for score in onto_rwr.graph_agreement(x_NxD[four], labels[four], forest):
        assert score.value is None and score.note.startswith("no type beside 4 others")
    for score in onto_rwr.graph_agreement(np.full((240, 3), 0.1), labels, forest):
        assert score.value is None and "do not differ" in score.note
    nothing = onto_rwr.graph_agreement(x_NxD, np.full(240, ""), forest, batches=np.full(240, ""))
    assert len(nothing) == 6 and all(s.value is None for s in nothing)
    with pytest.raises(ValueError, match="NaN or infinity"):
        onto_rwr.graph_agreement(x_NxD * np.nan, labels, forest)
    with pytest.raises(ValueError, match="one label per cell"):
        onto_rwr.graph_agreement(x_NxD, labels[1:], forest)


# --- real cells ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(real_data) -> Ontology:
    return cell_ontology.read_ontology(real_data / "cell_ontology" / "cl-basic.obo")


def test_every_term_of_the_table_has_the_name_that_the_table_gives(whole):
    table = pd.read_csv(cell_ontology.LABELS, keep_default_na=False)
    for label, term, name in table[["label", "term", "name"]].itertuples(index=False):
        assert whole.names.get(term, "") == name, label


@pytest.mark.parametrize(
    ("name", "left"),
    [("kang_ifnb_2800", []), ("pbmc_3_technologies", ["T/NK cells"]), ("onek1k_40_donors", [])],
)
def test_real_labels_have_terms(real_data, whole, name, left):
    obs = anndata.read_h5ad(real_data / f"{name}.h5ad", backed="r").obs
    labels = obs["cell_type"].astype(str).unique()
    terms, unmatched = cell_ontology.match(labels, whole, cell_ontology.read_labels())
    assert list(unmatched) == left and len(terms) == len(labels) - len(left)


def test_relatives_in_the_real_ontology(whole):
    def found(a, b):
        return ontology.common_ancestor(ids[a], ids[b], whole)

    ids = {name: term for term, name in whole.names.items()}
    assert found("T cell", "B cell")[0] == ids["lymphocyte"]
    assert found("CD14-low, CD16-positive monocyte", "classical monocyte")[0] == ids["monocyte"]
    assert found("naive B cell", "B cell")[1:] == (3, 0)  # mature; CD19-positive; B
    above = whole.above(ids["plasmacytoid dendritic cell"])
    assert ids["dendritic cell"] in above and "CL:0000000" in above
