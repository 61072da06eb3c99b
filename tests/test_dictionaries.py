"""Folders of Geneformer's dictionaries: the tokens they name, and what is refused."""

import pickle
import re

import numpy as np
import pytest

from scaling.corpus import vocabulary
from scaling.corpus.dictionaries import read_vocabulary

TOKENS = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG7": 4, "ENSG5": 6, "ENSG6": 5}
MEDIANS = {"ENSG1": 9.0, "ENSG5": 0.5, "ENSG6": np.float64(1 / 3), "ENSG7": 2.0}
RENAMED = {
    "ENSG7": "ENSG7", "ENSG8": "ENSG7", "ENSG9": "ENSG1", "CD4": "ENSG5", "ENSG5": "ENSG6",
}


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path)
    return tmp_path


def _write(folder, version="_x", tokens=TOKENS, medians=MEDIANS, renamed=RENAMED):
    kinds = {"token_dictionary": tokens, "gene_median_dictionary": medians}
    for kind, content in (kinds | {"ensembl_mapping_dict": renamed}).items():
        path = folder / f"{kind}{version}.pkl"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(pickle.dumps(content, 4))


def test_tokens_are_the_dictionarys(folder):
    found = read_vocabulary(folder)
    assert found.special == ("<pad>", "<mask>", "<cls>", "<eos>")
    tokens = {gene: len(found.special) + k for k, gene in enumerate(found.genes)}
    assert tokens == {gene: token for gene, token in TOKENS.items() if gene[0] != "<"}
    assert dict(zip(found.genes, found.medians, strict=True)) == {g: MEDIANS[g] for g in tokens}
    assert found.renamed == {"ENSG8": "ENSG7"}


def test_without_renamed_ids(folder):
    _write(folder, renamed=None)
    assert read_vocabulary(folder).renamed == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"no token_dictionary\*\.pkl; name a folder"),
        ({"medians": None}, "token_dictionary_x.pkl, but no gene_median_dictionary_x.pkl"),
        ({"tokens": {**TOKENS, "ENSG1": 8}}, "not 0, 1, 2"),
        ({"tokens": {**TOKENS, "ENSG1": 6}}, "not 0, 1, 2"),
        ({"tokens": {"<pad>": 1, "<mask>": 0, "ENSG5": 2}}, "begins with"),
        ({"tokens": {"<pad>": 0, "ENSG5": 1, "<mask>": 2}}, "do not come before all genes"),
        ({"tokens": {"<pad>": 0, "<mask>": 1, "ENSG2": 2}}, "no median of 1 genes.*'ENSG2'.*one"),
        ({"medians": {**MEDIANS, "ENSG5": 0.0}}, "make no vocabulary: .*above 0"),
        ({"medians": {**MEDIANS, "ENSG5": float("nan")}}, "make no vocabulary: .*finite"),
        ({"medians": TOKENS}, "gene_median_dictionary_x.pkl: its value of '<pad>' is 0, no float"),
        ({"tokens": MEDIANS}, "token_dictionary_x.pkl: its value of 'ENSG1' is 9.0, no int"),
        ({"renamed": TOKENS}, "ensembl_mapping_dict_x.pkl: its value of '<pad>' is 0, no str"),
    ],
)
def test_what_is_refused(folder, changes, message):
    _write(folder, **changes)
    with pytest.raises(ValueError, match=f"(?s){re.escape(str(folder))}.*{message}"):
        read_vocabulary(folder)


def test_two_versions_in_one_folder_are_refused(folder):
    path = folder / "gene_median_dictionary_x.pkl"
    path.rename(folder / "gene_median_dictionary_y.pkl")
    with pytest.raises(ValueError, match="token_dictionary_x.pkl beside gene_median_dictionary_y"):
        read_vocabulary(folder)
    _write(folder, "_z")
    message = "token_dictionary_x.pkl, token_dictionary_z.pkl; keep those of one version"
    with pytest.raises(ValueError, match=message):
        read_vocabulary(folder)


@pytest.mark.parametrize(("version", "genes", "special"), [(1, 25_424, 2), (2, 20_271, 4)])
def test_the_real_dictionaries(real_data, tmp_path, version, genes, special):
    found = read_vocabulary(real_data / f"geneformer_v{version}")
    assert (len(found.genes), len(found.special)) == (genes, special)
    found.save(tmp_path / "vocabulary.json")
    back = vocabulary.Vocabulary.load(tmp_path / "vocabulary.json")
    assert back.hash == found.hash and back.renamed == found.renamed
    assert len(found.renamed) == (0 if version == 1 else 3_423)
