"""Gene embeddings: planted signals are found, shuffled ones are not, beside plain baselines."""

import anndata
import numpy as np
import pytest
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from scaling.corpus import gene_tables
from scaling.corpus.vocabulary import read_gene_names
from scaling.evaluate import baselines, gene_sets

GENES = np.array([f"g{number}" for number in range(200)])


def planted(seed=0, dims=6, strength=4.0):
    """Embedding and labels that agree; expression that knows nothing of them."""
    rng = np.random.default_rng(seed)
    label_V = rng.random(200) < 0.3
    x_VxD = rng.normal(size=(200, dims)).astype(np.float32)
    x_VxD[:, 0] += strength * label_V
    return x_VxD, dict(zip(GENES, map(bool, label_V), strict=True)), rng.normal(size=(200, 2))


def by_name(scores):
    return {score.name: score for score in scores}


def test_a_planted_label_is_found_and_baselines_know_nothing():
    x_VxD, labels, expression = planted()
    found = by_name(gene_sets.label_auroc(x_VxD, GENES, labels, expression, of="planted"))
    assert found["gene_label_auroc"].value > 0.97
    assert found["gene_label_auroc"].low > 0.9 and found["gene_label_auroc"].interval == "genes"
    for name in ("gene_label_auroc_expression", "gene_label_auroc_random"):
        assert abs(found[name].value - 0.5) < 0.15 and found[name].low < 0.6
    gain = found["gene_label_auroc_gain"]
    plain = found["gene_label_auroc"].value - found["gene_label_auroc_expression"].value
    assert gain.value == pytest.approx(plain) and gain.low > 0.3
    assert found["gene_label_coverage"].value == 1
    assert all(s.of == "planted" and s.n == 200 for s in found.values())


def test_shuffled_labels_score_one_half():
    x_VxD, labels, expression = planted()
    mixed = np.random.default_rng(1).permutation(list(labels.values()))
    labels = dict(zip(labels, map(bool, mixed), strict=True))
    found = by_name(gene_sets.label_auroc(x_VxD, GENES, labels, expression, of="x"))
    assert found["gene_label_auroc"].low < 0.5 < found["gene_label_auroc"].high
    assert found["gene_label_auroc_gain"].low < 0 < found["gene_label_auroc_gain"].high


def test_a_label_of_expression_is_no_gain():
    """An embedding that is expression itself, turned: as good as, and no better than it."""
    _, labels, expression = planted()
    expression[:, 1] += 3 * np.array(list(labels.values()))
    turned = expression @ np.array([[0.6, -0.8], [0.8, 0.6]])
    found = by_name(gene_sets.label_auroc(turned, GENES, labels, expression, of="x"))
    assert found["gene_label_auroc"].value > 0.9 < found["gene_label_auroc_expression"].value
    assert abs(found["gene_label_auroc_gain"].value) < 0.03


def test_unseen_genes_are_left_out_and_counted():
    x_VxD, labels, expression = planted()
    x_VxD[:40] = np.nan
    expression[40:50] = np.nan
    labels |= {"other": True, "another": False}
    found = by_name(gene_sets.label_auroc(x_VxD, GENES, labels, expression, of="x"))
    positive = sum(labels[gene] for gene in GENES[50:])
    assert found["gene_label_auroc"].n == 150
    assert found["gene_label_coverage"].value == pytest.approx(150 / 202)
    assert f"{positive} of {sum(labels.values())} positive" in found["gene_label_auroc"].note
    alone = gene_sets.label_auroc(
        x_VxD[50:], GENES[50:], {g: labels[g] for g in GENES[50:]}, expression[50:], of="x"
    )
    assert found["gene_label_auroc"].value == alone[0].value


def test_order_of_the_genes_does_not_matter():
    x_VxD, labels, expression = planted(strength=1.0)
    order = np.random.default_rng(0).permutation(200)
    one = gene_sets.label_auroc(x_VxD, GENES, labels, expression, of="x")[0]
    two = gene_sets.label_auroc(x_VxD[order], GENES[order], labels, expression[order], of="x")[0]
    assert one.value == pytest.approx(two.value) and 0.6 < one.value < 0.95


def test_weighted_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    label_M = rng.random(60) < 0.4
    score_M = rng.integers(0, 8, 60).astype(float)  # with ties
    folds = [(test, score_M[test]) for test in np.array_split(rng.permutation(60), 3)]
    weights_SxM = rng.multinomial(60, np.full(60, 1 / 60), size=20).astype(float)
    expected = []
    for w_M in weights_SxM:
        pairs = [w_M[t][label_M[t]].sum() * w_M[t][~label_M[t]].sum() for t, _ in folds]
        each = [roc_auc_score(label_M[t], score, sample_weight=w_M[t]) for t, score in folds]
        expected.append(np.average(each, weights=pairs))
    np.testing.assert_allclose(gene_sets._auroc(weights_SxM, label_M, folds), expected)
    weights_SxM[0, folds[0][0]] = 0  # a fold without genes does not count
    assert gene_sets._auroc(weights_SxM, label_M, folds)[0] == pytest.approx(
        gene_sets._auroc(weights_SxM, label_M, folds[1:])[0]
    )
    assert np.isnan(gene_sets._auroc(label_M[None] * 1.0, label_M, folds)[0])


def test_held_out_genes_decide_nothing_of_their_probe():
    rng = np.random.default_rng(0)
    x_MxD, label_M = rng.normal(size=(60, 3)), np.arange(60) % 2 == 0
    train, test = np.arange(45), np.arange(45, 60)
    before = gene_sets._probe(x_MxD, label_M, train, test, 0)
    changed_MxD = x_MxD.copy()
    changed_MxD[50] = 1e3
    changed_M = label_M | (np.arange(60) >= 45)
    after = gene_sets._probe(changed_MxD, changed_M, train, test, 0)
    np.testing.assert_array_equal(np.delete(before, 5), np.delete(after, 5))


def test_too_few_labelled_genes_say_so():
    x_VxD, labels, expression = planted()
    few = {gene: number < 9 for number, gene in enumerate(GENES)}
    scores = gene_sets.label_auroc(x_VxD, GENES, few, expression, of="x")
    assert all(s.value is None and "fewer than 10 seen genes" in s.note for s in scores[:-1])
    assert scores[-1].value == 1


# --- gene sets -----------------------------------------------------------------------------------


def set_cells(seed=0):
    """Three sets of 20 genes around a direction each; the other genes anywhere."""
    rng = np.random.default_rng(seed)
    x_VxD = rng.normal(size=(200, 8)) + 5  # a common direction, that says nothing
    sets = {name: tuple(GENES[20 * n : 20 * n + 20]) for n, name in enumerate("abc")}
    for n in range(3):
        x_VxD[20 * n : 20 * n + 20, n] += 8
    return x_VxD, sets, rng.normal(size=(200, 2))


def test_members_of_planted_sets_are_found():
    x_VxD, sets, expression = set_cells()
    sets["too small"] = tuple(GENES[100:109])
    sets["unseen"] = tuple(f"x{number}" for number in range(20))
    found = by_name(gene_sets.set_auroc(x_VxD, GENES, sets, expression, of="planted"))
    assert found["gene_set_auroc"].value > 0.95 and found["gene_set_auroc"].n == 3
    assert found["gene_set_auroc"].interval == "gene sets"
    assert found["gene_set_auroc_gain"].value > 0.3
    for name in ("gene_set_auroc_expression", "gene_set_auroc_random"):
        assert abs(found[name].value - 0.5) < 0.15
    assert found["gene_set_coverage"].value == pytest.approx(69 / 89)
    assert "3 of 5 sets have 10 seen genes; 69 of 89" in found["gene_set_coverage"].note


def test_shuffled_sets_score_one_half():
    x_VxD, _, expression = set_cells()
    rng = np.random.default_rng(0)
    sets = {f"s{n}": tuple(rng.choice(GENES, 20, replace=False)) for n in range(200)}
    found = by_name(gene_sets.set_auroc(x_VxD, GENES, sets, expression))
    for name in ("gene_set_auroc", "gene_set_auroc_expression", "gene_set_auroc_random"):
        assert found[name].value == pytest.approx(0.5, abs=0.02)
        assert found[name].high - found[name].low < 0.06


def test_sets_of_equal_expression_are_found_by_expression():
    x_VxD, sets, expression = set_cells()
    expression[:20] = [[9.0, 9.0]] + 0.01 * expression[:20]
    found = by_name(gene_sets.set_auroc(x_VxD, GENES, {"a": sets["a"]}, expression))
    assert found["gene_set_auroc_expression"].value == 1


def test_a_set_is_scored_as_written_out():
    x_VxD, sets, expression = set_cells()
    x_VxD[:, :3] -= 0.8 * (x_VxD[:, :3] - 5)  # hard enough to tell mistakes
    (score, *_) = gene_sets.set_auroc(x_VxD, GENES, {"a": sets["a"]}, expression, seed=4)
    centred = x_VxD - x_VxD.mean(0)
    order = np.random.default_rng((4, 0)).permutation(np.arange(20))
    aurocs = []
    for part in np.array_split(order, 5):
        others = [v for v in range(20) if v not in part]
        middle = np.mean([centred[v] / np.linalg.norm(centred[v]) for v in others], 0)
        ranked = [v for v in range(200) if v not in others]
        cosine = [
            centred[v] @ middle / np.linalg.norm(centred[v]) / np.linalg.norm(middle)
            for v in ranked
        ]
        aurocs.append(roc_auc_score([v in part for v in ranked], cosine))
    assert score.value == pytest.approx(np.mean(aurocs)) and 0.6 < score.value < 0.99


def test_no_set_large_enough_has_no_score():
    x_VxD, sets, expression = set_cells()
    scores = gene_sets.set_auroc(x_VxD, GENES, {"a": sets["a"][:5]}, expression)
    assert all(s.value is None and "0 of 1 sets" in s.note for s in scores[:-1])
    assert scores[-1].value == 1


# --- reading -------------------------------------------------------------------------------------


def test_tables_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("yes,no\nA,B\n,C\nD,\n")
    assert gene_tables.read_two_lists(path, "yes", "no") == {"A": True, "B": False, "C": False,
                                                           "D": True}  # fmt: skip
    path.write_text("tf,k4,k27\nA,True,True\nB,True,False\nA,True,True\n")
    assert gene_tables.read_flags(path, "tf", "k4", "k27") == {"A": True, "B": False}
    assert gene_tables.read_flags(path, "tf", "k4") == {"A": True, "B": True}
    path.write_text("S1\tabout\tA\tB\tA\n\nS2\t\tC\n")
    assert gene_tables.read_gmt(path) == {"S1": ("A", "B"), "S2": ("C",)}
    ids = {"A": "E1", "D": "E4"}
    assert gene_tables.read_gmt(path, ids) == {"S1": ("E1", "B"), "S2": ("C",)}


@pytest.mark.parametrize(
    ("text", "read", "message"),
    [
        ("yes,no\nA,A\n", lambda p: gene_tables.read_two_lists(p, "yes", "no"), "A in both"),
        ("yes\nA\n", lambda p: gene_tables.read_two_lists(p, "yes", "no"), r"no column \['no'\]"),
        ("g,f\nA,maybe\n", lambda p: gene_tables.read_flags(p, "g", "f"), "use True or False"),
        ("g,f\nA,True\nA,False\n", lambda p: gene_tables.read_flags(p, "g", "f"), "stands twice"),
        ("S1\tabout\n", gene_tables.read_gmt, "line 1 has no name, description and genes"),
        ("S\t\tA\nS\t\tB\n", gene_tables.read_gmt, "line 2: set 'S' stands twice"),
    ],
)
def test_damaged_tables_are_refused(text, read, message, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"genes": GENES[:5]}, "give each gene one name"),
        ({"genes": np.array(["a"] * 200)}, "1 different"),
        ({"expression_Vx2": np.ones((200, 3))}, "two columns of the same genes"),
        ({"embedding_VxD": np.where(np.eye(200, 4) > 0, np.nan, 1.0)}, "4 genes' embeddings are"),
    ],
)
def test_bad_input_is_named(change, message):
    x_VxD, labels, expression = planted()
    given = {"embedding_VxD": x_VxD, "genes": GENES, "expression_Vx2": expression} | change
    with pytest.raises(ValueError, match=message):
        gene_sets.label_auroc(**given, labels=labels, of="x")
    with pytest.raises(ValueError, match=message):
        gene_sets.set_auroc(**given, sets={})


def test_expression_of_a_gene():
    counts = sparse.csr_matrix(np.array([[1, 0, 3], [0, 0, 4], [2, 0, 2]]))
    found = gene_sets.expression_baseline(counts)
    logged = np.log1p([[2500, 7500], [0, 1e4], [5000, 5000]])
    np.testing.assert_allclose(found[[0, 2], 0], logged.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found[[0, 2], 1], [np.log(2 / 3), 0], atol=1e-6)
    assert np.isnan(found[1]).all()


# --- real genes ----------------------------------------------------------------------------------


def test_real_tables_hold_what_they_are_known_for(real_data):
    folder = real_data / "gene_labels"
    dosage = gene_tables.read_two_lists(
        folder / "dosage_sens_tf_labels.csv", "dosage_sensitive", "dosage_insensitive"
    )
    bivalent = gene_tables.read_flags(folder / "is_bivalent.csv", "tf", "H3K4me3", "H3K27me3")
    far = gene_tables.read_flags(folder / "is_longrange_tf.csv", "ensembl_id", "is_longrange")
    columns = {"gene": "ensembl_id", "flags": "network_centricity"}
    central = gene_tables.read_labels(folder / "is_n1_central.csv", **columns)
    with pytest.raises(ValueError, match="give positive and negative"):
        gene_tables.read_labels(folder / "is_n1_central.csv", gene="ensembl_id")
    sizes = [(sum(t.values()), len(t)) for t in (dosage, bivalent, far, central)]
    assert sizes == [(122, 490), (96, 173), (46, 176), (100, 295)]


@pytest.mark.slow
def test_real_loadings_on_dosage_sensitivity(real_data):
    """Runs on real genes, symbols by the table; expression alone already tells them apart."""
    folder = real_data / "gene_labels"
    dosage = gene_tables.read_two_lists(
        folder / "dosage_sens_tf_labels.csv", "dosage_sensitive", "dosage_insensitive"
    )
    ids = read_gene_names(folder / "gene_info_table.csv", dosage)
    cells = anndata.read_h5ad(real_data / "pbmc_3_chemistries.h5ad")
    genes = np.array([ids.get(symbol, symbol) for symbol in cells.var_names])
    kept = np.flatnonzero(np.isin(genes, list(dosage)))
    counts = cells.X.tocsr()
    total = np.asarray(counts.sum(1)).ravel()
    expression = gene_sets.expression_baseline(counts[:, kept], total)
    logged = baselines.log_normalise(counts[:, kept], total).toarray()
    loadings = PCA(20, random_state=0).fit(logged).components_.T
    loadings[np.isnan(expression[:, 0])] = np.nan
    found = by_name(gene_sets.label_auroc(loadings, genes[kept], dosage, expression, of="dosage"))
    assert 0.6 < found["gene_label_coverage"].value < 1
    assert 0.55 < found["gene_label_auroc_expression"].value < 0.9
    assert found["gene_label_auroc_random"].low < 0.55
