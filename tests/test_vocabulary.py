"""Gene names to one vocabulary: ids, tables, hash, disk, and what is refused."""

import re

import numpy as np
import pytest

from scaling.corpus import vocabulary
from scaling.corpus.vocabulary import Vocabulary

MEDIANS = np.array([0.1, 1 / 3, np.nextafter(2.0, 3.0)])
GENES = ("ENSG2", "ENSG1", "ENSG3")
SPECIAL = ("<pad>", "<mask>", "<cls>", "<eos>")


def test_comes_back_from_disk_to_the_bit(tmp_path):
    genes = Vocabulary(GENES, MEDIANS)
    genes.save(tmp_path / "vocabulary.json")
    back = Vocabulary.load(tmp_path / "vocabulary.json")
    assert back.genes == GENES and back.medians.tobytes() == MEDIANS.tobytes()
    assert back.hash == genes.hash and len(back) == 5
    assert genes.hash == "9cfacb04269c9146"  # checkpoints carry it: it must not change
    assert (tmp_path / "vocabulary.json").read_text() == (
        '{"special": ["<pad>", "<mask>"], "genes": ["ENSG2", "ENSG1", "ENSG3"], '
        '"medians": [0.1, 0.3333333333333333, 2.0000000000000004]}'
    )


def test_other_special_tokens_and_renamed_ids_come_back_from_disk(tmp_path):
    genes = Vocabulary(GENES, MEDIANS, SPECIAL, {"ENSG9": "ENSG1"})
    genes.save(tmp_path / "vocabulary.json")
    back = Vocabulary.load(tmp_path / "vocabulary.json")
    assert (back.special, back.renamed) == (SPECIAL, {"ENSG9": "ENSG1"}) and len(back) == 7
    assert back.hash == genes.hash == Vocabulary(GENES, MEDIANS, SPECIAL).hash
    assert back.hash != Vocabulary(GENES, MEDIANS).hash


@pytest.mark.parametrize(
    "other",
    [
        Vocabulary(("ENSG1", "ENSG2", "ENSG3"), MEDIANS),
        Vocabulary(("ENSG2", "ENSG1", "ENSG4"), MEDIANS),
        Vocabulary(GENES, np.nextafter(MEDIANS, 3.0)),
        Vocabulary(GENES[:2], MEDIANS[:2]),
    ],
)
def test_hash_sees_genes_their_order_and_medians(other):
    assert other.hash != Vocabulary(GENES, MEDIANS).hash


@pytest.mark.parametrize(
    ("genes", "medians", "message"),
    [
        (("a", "a"), [1.0, 1.0], "distinct"),
        (("a", "b"), [1.0], "one median for each"),
        (("a", "b"), [1.0, 0.0], "above 0"),
        (("a", "b"), [1.0, np.nan], "finite"),
        (("a", "b"), [1.0, np.inf], "finite"),
        (tuple(map(str, range(2**16 - 1))), np.ones(2**16 - 1), "16-bit.*data.min_cells"),
    ],
)
def test_impossible_vocabularies_are_refused(genes, medians, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(genes, np.array(medians))


@pytest.mark.parametrize(
    ("special", "renamed", "message"),
    [
        (("<mask>", "<pad>"), {}, "begins with"),
        (("<pad>",), {}, "begins with"),
        ((*SPECIAL, "<cls>"), {}, "begins with"),
        ((*SPECIAL[:2], "ENSG1"), {}, "no gene is named so"),
        (SPECIAL, {"ENSG1": "ENSG2"}, "renames"),
        (SPECIAL, {"ENSG9": "ENSG8"}, "renames"),
    ],
)
def test_impossible_special_tokens_and_renamed_ids_are_refused(special, renamed, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(GENES, MEDIANS, special, renamed)


def test_as_many_tokens_as_16_bits_hold():
    genes = tuple(map(str, range(2**16 - 2)))
    assert len(Vocabulary(genes, np.ones(len(genes)))) == 2**16


@pytest.mark.parametrize(
    "content",
    [
        None, "", "no json", "[1]", '{"genes": ["a"]}', '{"genes": ["a"], "medians": [1.0]}',
        '{"special": ["<pad>", "<mask>"], "genes": ["a"], "medians": ["x"]}',
    ],
)
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, content):
    path = tmp_path / "vocabulary.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: not a vocabulary.*corpus"):
        Vocabulary.load(path)


def test_columns_of_one_id_are_summed_and_others_left_out():
    ids = np.array(["b", None, "a", "b", "c"], dtype=object)
    counts = np.array([[1, 10, 2, 4, 100], [0, 1, 0, 8, 1]])
    mapped = counts @ vocabulary.summing_columns(ids, ("a", "b", "z"))
    np.testing.assert_array_equal(mapped, [[2, 5, 0], [0, 8, 0]])
    nothing = vocabulary.summing_columns(ids, ("x",))
    assert nothing.shape == (5, 1) and nothing.nnz == 0


def test_version_suffixes_go_and_symbols_stay():
    names = np.array(["ENSG00000000003.15", "ENSMUSG00000000001", "ENSGR0000000001.2", "HLA-A.1"])
    expected = ["ENSG00000000003", "ENSMUSG00000000001", "ENSGR0000000001", "HLA-A.1"]
    assert vocabulary.gene_ids(names, None).tolist() == expected


def test_a_table_maps_symbols_and_leaves_ids_alone():
    names = np.array(["CD4", "ENSG7.1", "unheard of", ""])
    assert vocabulary.gene_ids(names, {"CD4": "ENSG1"}).tolist() == ["ENSG1", "ENSG7", None, None]


def test_retired_ids_take_their_genes_id():
    names = np.array(["ENSG3.1", "ENSG4", "CD4", "ENSG1", "", "CD8A"])
    renamed = {"ENSG3": "ENSG1", "ENSG2": "ENSG4"}
    found = vocabulary.gene_ids(names, {"CD4": "ENSG2"}, renamed).tolist()
    assert found == ["ENSG1", "ENSG4", "ENSG4", "ENSG1", None, None]


def test_a_gene_without_a_name_has_no_id():
    assert vocabulary.gene_ids(np.array(["", "CD4"]), None).tolist() == [None, "CD4"]


def test_a_symbol_with_several_ids_takes_the_one_that_files_name(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(
        "gene_type,ensembl_id,gene_name\nx,ENSG3.1,HLA-B\nx,ENSG1,HLA-B\nx,ENSG2.4,HLA-B\n"
        "x,ENSG5,TTTY\nx,ENSG4,TTTY\nx,,NOID\nx,ENSG9,\nx,ENSG6,NA1\n"
    )
    table = vocabulary.read_gene_names(str(path), {"ENSG2", "ENSG3"})
    assert table == {"HLA-B": "ENSG2", "TTTY": "ENSG4", "NA1": "ENSG6"}
    assert vocabulary.read_gene_names(str(path), ())["HLA-B"] == "ENSG1"


@pytest.mark.parametrize(
    "content",
    [None, b"", b"gene,id\nCD4,ENSG1\n", b"\xff\xfe\x00\x01", b'gene_name,ensembl_id\n"CD4,x\n'],
)
def test_a_broken_table_is_named_with_the_columns_it_needs(tmp_path, content):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*gene_name and ensembl_id"):
        vocabulary.read_gene_names(str(path), ())


def test_files_of_two_kinds_of_names_need_a_table():
    ids = {"a": np.array(["ENSG1", "ENSG2"]), "b": np.array(["CD4", "CD8A", "ENSG3"])}
    with pytest.raises(ValueError, match="a names genes by Ensembl id and b by.*data.gene_names"):
        vocabulary.check_one_kind(ids)
    vocabulary.check_one_kind({"a": ids["a"], "c": np.array(["ENSG5", None, "ENSG6", "MT"])})
    vocabulary.check_one_kind({"b": ids["b"], "none": np.array([None])})


def test_files_of_two_species_are_refused():
    ids = {"a": ["ENSG1", "ENSGR2", None], "b": ["ENSMUSG1", "ENSMUSG2", "ENSG3", "Actb"]}
    with pytest.raises(ValueError, match=r"a has genes ENSG\.\.\. and b genes ENSMUSG.*orthologs"):
        vocabulary.check_one_kind(ids)
    vocabulary.check_one_kind({"a": ids["a"], "c": ["ENSMUSG1", "ENSG1", "ENSG2"]})
    with pytest.raises(ValueError, match="b names genes by Ensembl id and c by symbol"):
        vocabulary.check_one_kind({"b": ids["b"], "c": ["ENSMUSG1", "Actb", "Cd4"]})
