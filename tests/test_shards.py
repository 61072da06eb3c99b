"""A corpus on disk: shards of tokens, rows in the order asked for, and what is refused."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scaling.corpus import build, readers
from scaling.corpus.shards import Corpus

SETTINGS = build.CorpusSettings(
    h5ad="", score_on="", gene_names="", gene_column="", layer="", vocabulary="", min_cells=1,
    primary_only=True, cell_type="", donor="", batch="", assay="", keep={}, held_out=0.25,
    split_seed=0, cells_per_shard=8, medians="exact", workers=1, scheduler="", draw=0,
)
ORDERS = [[0], [29, 0, 12, 13], [3, 3, 25, 3, 25, 1], list(range(30))[::-1]]


@pytest.fixture
def corpus(tmp_path, monkeypatch) -> tuple[Corpus, np.ndarray]:
    """Cells of two files, read in small chunks, one without counts; and the genes' counts."""
    monkeypatch.setattr(readers.chunks, "__defaults__", (None, 4))
    counts = np.random.default_rng(0).poisson(0.9, (31, 9)) + np.eye(31, 9, dtype=int)
    counts[:, 8], counts[5], counts[20:, 0] = 0, 0, 0
    genes = [f"g{k}" for k in range(9)]
    for name, part in {"a": counts[:20], "b": counts[20:, 1:]}.items():
        var = pd.DataFrame(index=genes[-part.shape[1]:])
        anndata.AnnData(sp.csr_matrix(part), var=var).write_h5ad(tmp_path / f"{name}.h5ad")
    settings = {**vars(SETTINGS), "h5ad": f"{tmp_path}/a.h5ad", "score_on": f"{tmp_path}/b.h5ad"}
    corpus = build.build(build.CorpusSettings(**settings), tmp_path / "corpus")
    return corpus, np.delete(counts, 5, 0)[:, :8]


@pytest.mark.parametrize("rows", ORDERS)
def test_counts_in_the_order_asked_for(corpus, rows):
    corpus, counts = corpus
    assert corpus.vocabulary.genes == tuple(f"g{k}" for k in range(8))
    read = corpus.counts(np.array(rows))
    assert read.dtype == np.float32 and sp.issparse(read) and read.format == "csr"
    np.testing.assert_array_equal(read.toarray(), counts[rows])


@pytest.mark.parametrize("rows", ORDERS)
@pytest.mark.parametrize("length", [3, 8, 20])
def test_tokens_in_the_order_asked_for_cut_and_padded(corpus, rows, length):
    corpus, counts = corpus
    tokens = corpus.tokens(np.array(rows), length)
    assert tokens.shape == (len(rows), length) and tokens.dtype == np.int32
    whole = corpus.tokens(np.arange(30), 8)
    for cell, row in zip(tokens, rows, strict=True):
        present = np.flatnonzero(counts[row]) + 2
        assert sorted(whole[row][: len(present)]) == list(present)
        n = min(length, len(present))
        assert cell[:n].tolist() == whole[row][:n].tolist() and not cell[n:].any()


def test_shards_hold_as_many_cells_as_asked_and_no_two_files(corpus):
    corpus, counts = corpus
    shards = corpus.manifest["shards"]
    assert [shard["name"] for shard in shards] == [f"tokens-0000{k}.uint16" for k in range(5)]
    # 20 cells of a file, one of them empty, and 11 of another.
    assert [shard["cells"] for shard in shards] == [7, 8, 4, 8, 3]
    whole = corpus.tokens(np.arange(30), 8)
    ends = np.cumsum([shard["cells"] for shard in shards])
    for shard, end in zip(shards, ends, strict=True):
        content = np.fromfile(corpus.folder / shard["name"], "<u2")
        cells = whole[end - shard["cells"] : end]
        assert content.tolist() == cells[cells > 0].tolist()
        assert len(content) == shard["tokens"]


@pytest.mark.parametrize("change", [None, lambda c: b"", lambda c: c[:-2], lambda c: c + b"xx"])
def test_a_shard_that_is_missing_or_has_another_size_is_named(corpus, change):
    path = corpus[0].folder / "tokens-00001.uint16"
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(ValueError, match=f"{path} has .* bytes, {len(content)} were written"):
        Corpus.open(corpus[0].folder).tokens([0], 4)


def test_opens_what_was_built(corpus):
    corpus, _ = corpus
    again = Corpus.open(str(corpus.folder))
    assert again.obs.equals(corpus.obs) and again.manifest == corpus.manifest
    assert again.vocabulary.hash == corpus.vocabulary.hash == again.manifest["vocabulary"]["hash"]


@pytest.mark.parametrize("name", ["vocabulary.json", "obs.parquet", "genes.parquet"])
def test_a_file_that_was_changed_is_named(corpus, name):
    folder = corpus[0].folder
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(bytes(content))
    with pytest.raises(ValueError, match=f"{folder / name} is not the file that was built"):
        Corpus.open(folder)


@pytest.mark.parametrize("content", [None, "", '{"checksums"'])
def test_a_folder_that_is_no_corpus(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=f"{tmp_path}: no corpus .*experiments.build_corpus"):
        Corpus.open(tmp_path)


def test_a_shard_that_is_missing_from_the_manifest(corpus):
    folder = corpus[0].folder
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["shards"][1]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="22 cells in the shards, 30 in obs.parquet; build again"):
        Corpus.open(folder).tokens([0], 4)


def test_a_corpus_of_another_format_is_refused(corpus):
    folder = corpus[0].folder
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(ValueError, match="has the format 1, and 3 is read; build it again"):
        Corpus.open(folder)
