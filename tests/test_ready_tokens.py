"""Data sets of ready tokens: as they are built, refused, drawn and written again."""

import dataclasses
import sys

import numpy as np
import pytest
from test_build import SETTINGS, _counts, _write

from scaling import scoring
from scaling.corpus import build, pieces, readers, ready_tokens, subsets
from scaling.corpus.tokens import SPECIAL
from scaling.corpus.vocabulary import Vocabulary
from scaling.evaluate import scores
from scaling.evaluate.held_out import EvaluateSettings, all_held_out
from scaling.evaluate.representations import Representation

datasets = pytest.importorskip("datasets", reason="pip install 'scaling[datasets]'")

GENES = tuple(f"g{k}" for k in range(12))
V1 = Vocabulary(GENES, np.ones(12))
V2 = Vocabulary(GENES, np.ones(12), (*SPECIAL, "<cls>", "<eos>"))


@pytest.fixture(autouse=True)
def _no_bars():
    datasets.disable_progress_bars()


def _cells(vocabulary=V1, cells=30, seed=0) -> list[list[int]]:
    draw, special = np.random.default_rng(seed), len(vocabulary.special)
    lengths = draw.integers(1, 12, cells)
    return [(draw.permutation(12)[:n] + special).tolist() for n in lengths]


def _saved(path, cells, **columns):
    datasets.Dataset.from_dict({"input_ids": cells, **columns}).save_to_disk(path)
    return str(path)


def _built(path, tmp_path, genes=V1, name="corpus", **changes):
    genes.save(tmp_path / "vocabulary.json")
    given = {"h5ad": path, "vocabulary": str(tmp_path / "vocabulary.json")}
    return build.build(dataclasses.replace(SETTINGS, **given | changes), tmp_path / name)


def _tokens(corpus) -> list[list[int]]:
    return [cell.tolist() for cell in corpus.cells(np.arange(len(corpus.obs)))]


def test_tokens_stay_in_their_order_and_lengths_are_not_believed(tmp_path):
    cells = _cells()
    stated = [len(cell) + (k in (3, 7, 20)) for k, cell in enumerate(cells)]
    types = datasets.ClassLabel(names=["T", "B"])
    path = tmp_path / "set.dataset"
    made = datasets.Dataset.from_dict({
        "input_ids": cells, "length": stated, "kind": [k % 2 for k in range(30)],
        "who": [None if k == 4 else f"d{k % 3}" for k in range(30)],
    })
    made.cast_column("kind", types).save_to_disk(path)
    corpus = _built(str(path), tmp_path, cell_type="kind", donor="who")
    assert _tokens(corpus) == cells
    assert corpus.manifest["files"][0]["wrong_lengths"] == 3
    assert corpus.obs["cell_type"].tolist() == ["T", "B"] * 15
    assert corpus.obs["donor"].tolist() == ["" if k == 4 else f"d{k % 3}" for k in range(30)]
    prints = [f"set:{p:016x}-{k}" for k, p in enumerate(corpus.obs["fingerprint"])]
    assert corpus.obs["cell_id"].tolist() == prints and len(set(prints)) == 30
    assert not corpus.has_counts([0])
    with pytest.raises(ValueError, match="ready tokens, which have no counts"):
        corpus.counts([0])


def test_fingerprints_tell_order_and_not_the_vocabulary():
    a, b = (ready_tokens.fingerprints(np.array(t), np.array([2, 2, 3]), V1)
            for t in ([2, 3, 3, 2, 4, 2, 3], [2, 3, 2, 3, 4, 2, 3]))
    assert a[0] == b[0] == b[1] != a[1] and a[2] == b[2]
    shifted = ready_tokens.fingerprints(np.array([4, 5, 5, 4, 6, 4, 5]), np.array([2, 2, 3]), V2)
    assert shifted.tolist() == a.tolist()


def test_identical_cells_stand_on_one_side(tmp_path):
    cells = [[2, 3, 4]] * 8 + _cells()
    corpus = _built(_saved(tmp_path / "set", cells), tmp_path)
    alike = corpus.obs.iloc[:8]["split"]
    assert (alike == "held_out").any() and not (alike == "pool").any()


@pytest.mark.parametrize("vocabulary", [V1, V2])
def test_a_corpus_that_was_written_is_read_again(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "given.json")
    h5ad = _write(tmp_path / "c.h5ad", _counts(), kind=[f"t{k % 3}" for k in range(30)])
    changes = {"gene_column": "symbol", "cell_type": "kind"}
    given = {"h5ad": str(h5ad), "vocabulary": str(tmp_path / "given.json")} | changes
    corpus = build.build(dataclasses.replace(SETTINGS, **given), tmp_path / "counted")
    ready_tokens.write(corpus, tmp_path / "out.dataset")
    stored = datasets.load_from_disk(str(tmp_path / "out.dataset"))
    wrap = ([2], [3]) if vocabulary is V2 else ([], [])
    assert stored["input_ids"][:] == [wrap[0] + cell + wrap[1] for cell in _tokens(corpus)]
    assert stored["length"][:] == [len(cell) for cell in stored["input_ids"]]
    assert stored["cell_id"][:] == corpus.obs["cell_id"].tolist()
    again = _built(str(tmp_path / "out.dataset"), tmp_path, vocabulary, cell_type="cell_type")
    assert _tokens(again) == _tokens(corpus)
    assert again.obs["cell_type"].tolist() == corpus.obs["cell_type"].tolist()
    assert again.manifest["files"][0]["wrong_lengths"] == 0
    ready_tokens.write(corpus, tmp_path / "cut", 4)
    cut = datasets.load_from_disk(str(tmp_path / "cut"))["input_ids"][:]
    most = 4 - len(wrap[0]) - len(wrap[1])
    assert cut == [wrap[0] + cell[:most] + wrap[1] for cell in _tokens(corpus)]
    assert {p.name for p in tmp_path.iterdir()} >= {"cut", "out.dataset"}
    assert not [p for p in tmp_path.iterdir() if "partial" in p.name or p.name.startswith(".")]


def test_writing_refuses_what_it_would_lose(tmp_path):
    corpus = _built(_saved(tmp_path / "set", _cells(V2)), tmp_path, V2)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there exists; name another folder"):
        ready_tokens.write(corpus, tmp_path / "there")
    with pytest.raises(ValueError, match="a length of 2 leaves no gene"):
        ready_tokens.write(corpus, tmp_path / "new", 2)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("cell", "message", "workers"), [
    ([2, 14], "token 14 in row 31, the vocabulary has 0 to 13; name the dictionaries", 1),
    ([2, -1], "token -1 in row 31", 1),
    ([5, 1, 2], "<mask> in row 31; give the cells as they were before masking", 1),
    ([5, 2, 5], "a gene stands twice in row 31", 1),
    ([5, 2, 5], "a gene stands twice in row 31", 2),
    (None, "row 31 has no list in input_ids", 1),
])
def test_cells_that_are_not_of_the_vocabulary_are_refused(tmp_path, cell, message, workers):
    path = _saved(tmp_path / "set", [[3], *_cells(), cell])
    with pytest.raises(ValueError, match=message) as refusal:
        _built(path, tmp_path, workers=workers)
    assert path in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set", "vocabulary.json"]


def test_cells_of_another_version_are_noticed(tmp_path):
    wrapped = [[2, *(t + 2 for t in cell), 3] for cell in _cells()]
    wrapped = [[t for k, t in enumerate(c) if t not in c[:k]] for c in wrapped]
    plain = [[2, *(t for t in cell if t not in (2, 3)), 3] for cell in _cells()]
    with pytest.raises(ValueError, match="all begin with 2, which is <cls> of Geneformer V2"):
        _built(_saved(tmp_path / "set", plain), tmp_path, cells_per_shard=100)
    assert _tokens(_built(_saved(tmp_path / "v2", wrapped), tmp_path, V2)) == [
        [t for t in cell if t > 3] for cell in wrapped if set(cell) - {2, 3}
    ]


@pytest.mark.parametrize(("fault", "message"), [
    ("no vocabulary", "mean nothing without the vocabulary"),
    ("splits", r"splits \['train'\]; name the folders"),
    ("no tokens", "no column 'input_ids'"),
    ("text", "input_ids hold .*string.*lists of integers are read"),
    ("empty", "no cells; nothing to read|not a readable data set of tokens"),
    ("truncated", "not a readable data set of tokens|cannot be read"),
    ("state", "not a readable data set of tokens"),
])
def test_folders_that_hold_no_tokens_are_refused(tmp_path, fault, message):
    data = datasets.Dataset.from_dict({"input_ids": _cells()})
    path, changes = tmp_path / "set", {}
    if fault == "splits":
        data = datasets.DatasetDict(train=data)
    if fault == "no tokens":
        data = data.rename_column("input_ids", "tokens")
    if fault == "text":
        data = datasets.Dataset.from_dict({"input_ids": [["a"]] * 30})
    if fault == "empty":
        data = data.select([])
    data.save_to_disk(path)
    if fault == "no vocabulary":
        changes["vocabulary"] = ""
    if fault == "truncated":
        file = path / "data-00000-of-00001.arrow"
        file.write_bytes(file.read_bytes()[:400])
    if fault == "state":
        (path / "state.json").write_text("{")
    with pytest.raises(ValueError, match=message) as refusal:
        _built(str(path), tmp_path, **changes)
    assert str(path) in str(refusal.value)


def test_without_the_library_the_remedy_is_named(tmp_path, monkeypatch):
    path = _saved(tmp_path / "set", _cells())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"set: .*pip install 'scaling\[datasets\]'"):
        _built(path, tmp_path)


def test_tokens_and_counts_meet_in_one_corpus(tmp_path):
    h5ad = _write(tmp_path / "c.h5ad", _counts(), kind=["t"] * 30)
    path = f"{_saved(tmp_path / 'set', _cells())},{h5ad}"
    corpus = _built(path, tmp_path, gene_column="symbol")
    alone = _built(str(h5ad), tmp_path, gene_column="symbol", name="alone")
    counted = np.flatnonzero(corpus.obs["dataset"] == "c")
    assert _tokens(corpus)[: counted[0]] == _cells()[: counted[0]] or counted[0] == 0
    assert [_tokens(corpus)[row] for row in counted] == _tokens(alone)
    assert corpus.has_counts(counted) and not corpus.has_counts(np.arange(len(corpus.obs)))
    mine = corpus.counts(counted).toarray()
    np.testing.assert_array_equal(mine, alone.counts(np.arange(len(alone.obs))).toarray())


def test_a_table_of_symbols_is_for_files_with_genes_alone(tmp_path):
    h5ad = _write(tmp_path / "c.h5ad", _counts())
    (tmp_path / "t.csv").write_text("gene_name,ensembl_id\n" + "".join(f"{g},{g}\n" for g in GENES))
    path = f"{_saved(tmp_path / 'set', _cells())},{h5ad}"
    changes = {"gene_column": "symbol", "gene_names": str(tmp_path / "t.csv")}
    corpus = _built(path, tmp_path, **changes)
    assert corpus.obs["dataset"].value_counts()["set"] == 30


def test_scores_that_need_counts_are_left_out(tmp_path):
    cells = _cells(cells=120)
    kinds = {"kind": [f"t{k % 2}" for k in range(120)], "lane": [f"b{k % 3}" for k in range(120)]}
    path = _saved(tmp_path / "set", cells, **kinds)
    corpus = _built(path, tmp_path, cell_type="kind", batch="lane", held_out=0.8)
    settings = EvaluateSettings(-2, 100, (), 0)
    held_out = all_held_out(corpus, settings)
    pool = np.flatnonzero(corpus.obs["split"] == "pool")
    assert scoring.baseline_rows(corpus, pool, held_out) == {}
    known = np.random.default_rng(0).normal(size=(len(held_out[0].rows), 4))
    rows = scores.rows_of_representation(Representation(lambda _: known), held_out[0])
    mixing = [row for row in rows if row["task"] == "batch_mixing"]
    assert {row["value"] for row in mixing} == {None} and "have no counts" in mixing[0]["note"]
    assert {row["score"] for row in rows if row["value"] is not None} >= {"knn_accuracy"}


def test_embedding_reads_the_same_tokens(tmp_path):
    path = _saved(tmp_path / "set", [[2, *cell, 3] for cell in _cells(V2)])
    source = readers.open_source(path)
    [(rows, tokens, lengths, _)] = pieces.encode(source, np.empty(0, object), V2)
    assert rows.tolist() == list(range(30)) and lengths.tolist() == [len(c) for c in _cells(V2)]
    assert tokens.tolist() == [t for cell in _cells(V2) for t in cell]


@pytest.mark.parametrize("files", [1, 2])
def test_a_draw_is_that_of_the_library(files):
    whole = datasets.Dataset.from_dict({"row": list(range(1000))})
    published = whole.shuffle(seed=42).select(range(120))["row"][:]
    rows = [np.arange(1000)] if files == 1 else [np.arange(700), np.arange(300)]
    drawn, held_out = subsets.draw(rows, 120, 1 / 6, 42)
    at = np.concatenate([of_file + 700 * k for k, of_file in enumerate(drawn)])
    assert sorted(published[100:]) == at[held_out].tolist()
    assert sorted(published[:100]) == at[~held_out].tolist()


def test_a_draw_holds_out_its_last_cells(tmp_path):
    cells = _cells(cells=200)
    path, options = _saved(tmp_path / "set", cells), {"draw": 60, "split_seed": 42}
    corpus = _built(path, tmp_path, held_out=1 / 6, **options)
    order = np.random.default_rng(42).permutation(200)[:60]
    held_out = corpus.obs["split"] == "held_out"
    assert set(corpus.obs["row"][held_out]) == set(order[50:])
    assert set(corpus.obs["row"]) == set(order) and corpus.manifest["split_by"] == "cell"
    assert [cells[row] for row in corpus.obs["row"]] == _tokens(corpus)
    assert corpus.manifest["files"][0]["cells_filtered"] == 140
    for draw in (1, 201):
        with pytest.raises(ValueError, match=f"data.draw is {draw} .* there are 200 cells"):
            _built(path, tmp_path, name="other", draw=draw)
    with pytest.raises(ValueError, match="leave data.score_on empty"):
        dataclasses.replace(SETTINGS, draw=5, score_on="x")


def test_the_published_draw_is_the_configs():
    from configs import genecorpus_1m

    data = genecorpus_1m.get_config().data
    assert (data.draw, data.split_seed) == (1_200_000, 42)
    assert round(data.draw * data.held_out) == 200_000


def test_a_draw_may_leave_a_file_out(tmp_path):
    paths = [_write(tmp_path / f"{name}.h5ad", _counts(n)) for name, n in (("a", 90), ("b", 2))]
    settings = {"h5ad": ",".join(map(str, paths)), "gene_column": "symbol", "draw": 10}
    corpus = build.build(dataclasses.replace(SETTINGS, **settings), tmp_path / "corpus")
    assert set(corpus.obs["dataset"]) == {"a"}
    assert [file["cells"] for file in corpus.manifest["files"]] == [10, 0]
