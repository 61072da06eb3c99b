"""Files and settings that make no corpus: a clear error, and nothing left behind."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from configs import smoke
from scaling.corpus import build, readers
from scaling.corpus.vocabulary import Vocabulary
from scaling.settings import Settings
from scaling.sweeps import jobs

SETTINGS = build.CorpusSettings(
    h5ad="", score_on="", gene_names="", gene_column="", layer="", vocabulary="", min_cells=1,
    primary_only=True, cell_type="", donor="", batch="", assay="", keep={}, held_out=0.25,
    split_seed=0, cells_per_shard=7, medians="exact", workers=1, scheduler="", draw=0,
)
ROOT = pathlib.Path(__file__).parents[1]
COUNTS = np.random.default_rng(0).poisson(1.0, (40, 5))
LATER = readers.CHUNK_CELLS + 3  # a cell of the second chunk


def _write(path, counts=COUNTS, prefix="g", **obs) -> str:
    cells = pd.DataFrame(obs, index=[f"c{k}" for k in range(counts.shape[0])])
    genes = pd.DataFrame(index=[f"{prefix}{k}" for k in range(counts.shape[1])])
    anndata.AnnData(counts, cells, genes).write_h5ad(path)
    return str(path)


def _assert_refused(folder, message, **changes) -> None:
    """Builds with the settings; expects the message and an untouched place for results."""
    before = sorted(folder.rglob("*"))
    settings = dataclasses.replace(SETTINGS, **{"h5ad": f"{folder}/*.h5ad"} | changes)
    (folder / "results").mkdir()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build.build(settings, folder / "results" / "corpus")
    assert not list((folder / "results").iterdir())
    (folder / "results").rmdir()
    assert sorted(folder.rglob("*")) == before


REMEDY = r".*Raw counts are finite integers.*name their layer with data\.layer"


@pytest.mark.parametrize("row", [2, LATER])
@pytest.mark.parametrize("stored", [sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("value", [-1.0, 1.5, np.nan, np.inf])
def test_values_that_are_no_counts(tmp_path, value, stored, row):
    counts = np.ones((LATER + 20, 4))
    counts[row, 3] = value
    path = _write(tmp_path / "a.h5ad", stored(counts))
    place = re.escape(f"{path}: .X holds no raw counts: {value!r} in cell 'c{row}', gene 'g3'")
    _assert_refused(tmp_path, place + REMEDY)


def test_log_normalised_values(tmp_path):
    path = _write(tmp_path / "a.h5ad", sp.csr_matrix(np.log1p(COUNTS * 10_000 / COUNTS.sum())))
    _assert_refused(tmp_path, rf"{re.escape(path)}: \.X holds no raw counts: \d.* in cell 'c0'")


def test_real_log_normalised_values(tmp_path, real_data):
    (tmp_path / "not_counts.h5ad").symlink_to(real_data / "not_counts.h5ad")
    _assert_refused(tmp_path, r"not_counts\.h5ad: \.X holds no raw counts: .* gene" + REMEDY)


def test_values_in_x_and_in_raw_are_both_named(tmp_path):
    data = anndata.AnnData(COUNTS * 0.3)
    data.raw = anndata.AnnData(COUNTS - 1.0)
    data.write_h5ad(tmp_path / "a.h5ad")
    _assert_refused(tmp_path, r"a\.h5ad: \.X holds no raw.*a\.h5ad: \.raw\.X holds no raw counts")


@pytest.mark.parametrize(("cells", "genes"), [(0, 5), (5, 0), (0, 0)])
def test_files_without_cells_or_genes(tmp_path, cells, genes):
    path = _write(tmp_path / "a.h5ad", sp.csr_matrix((cells, genes)))
    _assert_refused(tmp_path, rf"{re.escape(path)}: {cells} cells x {genes} genes")


@pytest.mark.parametrize("content", [b"", b"cell,gene\nc1,3\n" * 50])
def test_files_that_are_no_h5ad(tmp_path, content):
    (tmp_path / "a.h5ad").write_bytes(content)
    _assert_refused(tmp_path, r"a\.h5ad: not a readable \.h5ad file .*download it again")


def test_hdf5_of_something_else(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["matrix"] = COUNTS
    _assert_refused(tmp_path, r"a\.h5ad: not a readable \.h5ad file .*download it again")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.999])
def test_truncated_files(tmp_path, share):
    path = pathlib.Path(_write(tmp_path / "a.h5ad", sp.csr_matrix(np.tile(COUNTS, (50, 4)))))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    _write(tmp_path / "whole.h5ad")
    _assert_refused(tmp_path, r"a\.h5ad: not a readable .*truncated: copy or download it again")


def test_a_file_damaged_in_its_counts(tmp_path):
    path = pathlib.Path(_write(tmp_path / "a.h5ad"))
    data = anndata.AnnData(sp.csr_matrix(np.random.default_rng(0).poisson(9.0, (3000, 60))))
    data.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        start = file["X/data"].id.get_chunk_info(5).byte_offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\x00" * 500)
    _assert_refused(tmp_path, r"a\.h5ad: cells \d+-\d+ of X cannot be read .*download it again")


def test_no_gene_of_a_given_vocabulary(tmp_path):
    path = _write(tmp_path / "a.h5ad", prefix="h")
    Vocabulary(("g0", "g1"), np.ones(2)).save(tmp_path / "v.json")
    message = rf"{re.escape(path)}: none of its 5 genes \(such as 'h0'\).*'g0'.*data\.gene_names"
    _assert_refused(tmp_path, message, vocabulary=str(tmp_path / "v.json"))


def _write_counts_of(path, covered: float) -> str:
    """A file of 1,000 counts a cell, of which the gene g0 has this share."""
    counts = np.tile([round(1_000 * covered), 1_000 - round(1_000 * covered)], (10, 1))
    counts[:5] += np.diag(np.arange(5)[::-1])[:, :2]  # no two cells alike, for the split
    return _write(path, counts)


@pytest.mark.parametrize("share", [0.001, 0.049])
def test_too_few_counts_in_a_given_vocabulary(tmp_path, share):
    path = _write_counts_of(tmp_path / "a.h5ad", share)
    Vocabulary(("g0", "z"), np.ones(2)).save(tmp_path / "v.json")
    message = rf"{re.escape(path)}: the vocabulary covers {share:.1%} of its counts "
    message += r"\(1 of 2 genes.*5% is the least: .*data\.gene_names.*data\.gene_column"
    _assert_refused(tmp_path, message, vocabulary=str(tmp_path / "v.json"))


def test_few_counts_in_a_given_vocabulary_are_enough(tmp_path):
    path = _write_counts_of(tmp_path / "a.h5ad", 0.06)
    Vocabulary(("g0", "z"), np.ones(2)).save(tmp_path / "v.json")
    settings = dataclasses.replace(SETTINGS, h5ad=path, vocabulary=str(tmp_path / "v.json"))
    assert len(build.build(settings, tmp_path / "corpus").obs) == 10


def test_cells_of_another_species(tmp_path):
    path = _write(tmp_path / "a.h5ad", prefix="ENSMUSG0000000000")
    Vocabulary(("ENSG00000000001", "ENSG00000000002"), np.ones(2)).save(tmp_path / "v.json")
    message = r"a has genes ENSMUSG\.\.\. and the vocabulary genes ENSG\.\.\.: two species"
    _assert_refused(tmp_path, message, vocabulary=str(tmp_path / "v.json"))
    human = _write(tmp_path / "b.h5ad", prefix="ENSG0000000000")
    _assert_refused(tmp_path, "a has genes ENSMUSG.*b genes ENSG", h5ad=path, score_on=human)


def test_symbols_and_a_vocabulary_of_ids(tmp_path):
    _write(tmp_path / "a.h5ad")
    Vocabulary(("ENSG00000000001", "ENSG00000000002"), np.ones(2)).save(tmp_path / "v.json")
    message = r"the vocabulary names genes by Ensembl id and a by symbol; .*data\.gene_names"
    _assert_refused(tmp_path, message, vocabulary=str(tmp_path / "v.json"))


def test_a_folder_without_dictionaries(tmp_path):
    _write(tmp_path / "a.h5ad")
    (tmp_path / "d").mkdir()
    _assert_refused(tmp_path, r"d: no token_dictionary\*\.pkl", vocabulary=str(tmp_path / "d"))


def test_no_gene_of_the_pools_vocabulary_in_a_file_to_score_on(tmp_path):
    pool, other = _write(tmp_path / "a.h5ad"), _write(tmp_path / "b.h5ad", prefix="h")
    message = rf"{re.escape(other)}: none of its 5 genes \(such as 'h0'\)"
    _assert_refused(tmp_path, message, h5ad=pool, score_on=other)


def test_one_file_to_train_and_to_score_on(tmp_path):
    path = _write(tmp_path / "a.h5ad")
    _write(tmp_path / "b.h5ad")
    message = f"{re.escape(path)} is in data.h5ad and in data.score_on; take it out"
    _assert_refused(tmp_path, message, score_on=path)


def test_missing_columns_are_answered_with_those_there_are(tmp_path):
    _write(tmp_path / "a.h5ad", celltype="T", donor="d")
    message = r"no column 'cell_type'.*\['celltype', 'donor'\].*data\.cell_type"
    _assert_refused(tmp_path, message, cell_type="cell_type")
    _assert_refused(tmp_path, r"a\.h5ad: no layer 'counts' \(there are: \[\]\)", layer="counts")
    _assert_refused(tmp_path, r"a\.h5ad: no column 'id' in \.var .*gene_column", gene_column="id")
    keep = {"a": {"demuxlet": "SNG"}}
    _assert_refused(tmp_path, r"a\.h5ad: data\.keep .*\['celltype', 'donor'\]", keep=keep)
    _assert_refused(tmp_path, r"a\.h5ad: data\.keep leaves no cell", keep={"a": {"donor": "e"}})


def test_labels_only_where_nothing_is_scored(tmp_path):
    pool = _write(tmp_path / "a.h5ad", cell_type="T")
    other = _write(tmp_path / "b.h5ad", COUNTS + 1, sample="s")
    changes = {"h5ad": pool, "score_on": other, "cell_type": "cell_type"}
    _assert_refused(tmp_path, r"no column 'cell_type' .*\{'b': \['sample'\]\}", **changes)


def test_cell_names_that_stand_twice(tmp_path):
    path = _write(tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        file["obs/_index"][7] = "c3"
    message = rf"{re.escape(path)}: cell name 'c3' stands twice.*obs_names_make_unique"
    _assert_refused(tmp_path, message)


def test_lists_of_files(tmp_path):
    (tmp_path / "x").mkdir()
    _write(tmp_path / "a.h5ad"), _write(tmp_path / "x" / "a.h5ad")
    _assert_refused(tmp_path, "a.h5ad and .*a.h5ad share one name; rename", h5ad=f"{tmp_path}/**")
    _assert_refused(tmp_path, "no file matches .*b.h5ad.*give a path", h5ad=f"{tmp_path}/b.h5ad")
    _assert_refused(tmp_path, "no file matches .*z.h5ad.*give a path", score_on="z.h5ad")
    _assert_refused(tmp_path, "data.h5ad is empty; name the stores of counts", h5ad=" , ")


def test_gene_tables(tmp_path):
    _write(tmp_path / "a.h5ad", prefix="ENSG")
    _write(tmp_path / "b.h5ad")
    _assert_refused(tmp_path, "a names genes by Ensembl id and b by symbol; .*data.gene_names")
    table = tmp_path / "t.csv"
    table.write_text("symbol,id\ng1,ENSG1\n")
    columns = r"t\.csv: no table .*columns gene_name and ensembl_id"
    _assert_refused(tmp_path, columns, gene_names=str(table))
    _assert_refused(tmp_path, r"u\.csv: no table .*u\.csv", gene_names=f"{tmp_path}/u.csv")
    table.write_text("gene_name,ensembl_id\nh1,ENSG1\n")
    message = r"b\.h5ad: .*t\.csv has none of its genes \(such as 'g0'\); give a table"
    _assert_refused(tmp_path, message, gene_names=str(table))


def test_too_few_cells_for_a_vocabulary(tmp_path):
    _write(tmp_path / "a.h5ad")
    _assert_refused(tmp_path, "no gene is found in 99 cells .*lower data.min_cells", min_cells=99)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("masking", {"band": (0.0, 0.5)}, "masking.band is set, and nothing reads it; set masking"),
        ("masking", {"band": (0.1,)}, r"masking.band is \(0.1,\); give shares"),
        ("masking", {"band": ("a", "b")}, r"masking.band is \('a', 'b'\); give shares"),
        ("masking", {"programs": "p.gmt"}, "masking.programs is set, and nothing reads it"),
        ("masking", {"strategy": "programs", "programs": "p.gmt"}, "'p.gmt', and there is no such"),
        ("supervision", {"ontology": "cl.obo"}, "nothing reads it; set supervision.columns"),
        ("supervision", {"columns": ("sex",), "ontology": "cl.obo"}, "'cl.obo', and there is no s"),
        ("supervision", {"columns": (("sex", "x"),)}, "gives sex the weight 'x'; give a number"),
        ("study", {"supervisions": ((("sex", "x"),),)}, "gives sex the weight 'x'; give a number"),
        ("study", {"masking_rates": ("a",)}, "masking.rate is 'a'"),
        ("study", {"encoders": (("a", {"layers": "2"}),)}, "sets {'layers': '2'}; .* layers: int"),
    ],
)
def test_settings_that_say_nothing_or_cannot_be_read(part, changes, message):
    config = smoke.get_config()
    with config.unlocked():
        config[part].update(changes)
    with pytest.raises(ValueError, match=message):
        jobs.plan(Settings.from_config(config))


def test_a_setting_that_an_axis_reads_is_read():
    config = smoke.get_config()
    config.masking.band, config.study.maskings = (0.0, 0.5), ("uniform", "band")
    config.supervision.ontology, config.study.supervisions = __file__, ((), ("cell_type",))
    assert Settings.from_config(config).run.masking.band == (0.0, 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("logged", ".X holds no raw counts"),
        ("truncated", "not a readable .h5ad file"),
        ("unlabelled", "no column 'cell_type' in .obs"),
    ],
)
def test_the_entry_point_ends_with_one_message(tmp_path, fault, message):
    path = _write(tmp_path / "a.h5ad", np.log1p(COUNTS) if fault == "logged" else COUNTS)
    if fault == "truncated":
        os.truncate(path, os.path.getsize(path) // 2)
    command = [sys.executable, "-m", "experiments.build_corpus", "--config=configs/default.py"]
    command += [f"--config.data.h5ad={path}", f"--workdir={tmp_path}/out"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert path in done.stderr or fault == "unlabelled"
    assert message in done.stderr and not list(tmp_path.glob("out/*"))
