"""verify names each damaged, missing or foreign file; info counts what stands in a corpus."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
from test_experiments import call

from scaling.corpus import inspect, shards


@pytest.fixture
def copy(tiny_corpus, tmp_path):
    return shutil.copytree(tiny_corpus.folder, tmp_path / "corpus")


def test_a_whole_corpus_has_no_fault(copy):
    assert inspect.verify(copy) == []


@pytest.mark.parametrize(
    "name", ["tokens-00001.uint16", "obs.parquet", "vocabulary.json", "genes.parquet"]
)
def test_a_flipped_bit_is_found_and_named(copy, name):
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 3] ^= 4
    (copy / name).write_bytes(content)
    (fault,) = inspect.verify(copy)
    assert fault.startswith(f"{copy / name} is not the file that was built")


def test_missing_cut_and_foreign_shards_are_all_named(copy):
    shards = sorted(copy.glob("tokens-*"))
    size = shards[1].stat().st_size
    shutil.copy(shards[2], copy / "tokens-00009.uint16")
    shutil.copy(shards[0], shards[2])
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-2])
    faults = inspect.verify(copy)
    assert f"{shards[0]} is missing" in faults
    assert f"{shards[1]} has {size - 2} bytes, {size} were written" in faults
    assert any(fault.startswith(f"{shards[2]} ") for fault in faults)
    assert f"{copy / 'tokens-00009.uint16'} is of another build" in faults
    assert len(faults) == 4


def _forge(folder, name, content: bytes):
    """Replaces a file and its checksum, as a faulty builder would."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["checksums"][name] = shards.file_checksum(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_tokens_that_are_no_gene(copy):
    name = "tokens-00002.uint16"
    content = bytearray((copy / name).read_bytes())
    content[10:12] = b"\xff\xff"
    _forge(copy, name, content)
    assert inspect.verify(copy) == [f"{copy / name} has tokens that are no gene"]


def test_cells_that_are_not_those_of_the_manifest(copy):
    obs = pd.read_parquet(copy / "obs.parquet")
    obs.loc[0, "split"] = "duplicate"
    obs.to_parquet(copy / "changed")
    _forge(copy, "obs.parquet", (copy / "changed").read_bytes())
    (fault,) = inspect.verify(copy)
    assert fault == f"{copy / 'obs.parquet'} does not hold the cells that manifest.json counts"


def test_info_counts_cells(tiny_corpus):
    text = inspect.info(tiny_corpus)
    obs = tiny_corpus.obs
    for column in ("split", "cell_type", "donor", "batch"):
        for value, count in obs[column].value_counts().items():
            assert f"  {count:>12,}  {value}\n" in text
    assert f"{len(obs)} cells" in text and f"{obs['length'].sum():,} gene tokens" in text
    histogram = [int(line.split()[3]) for line in text.splitlines() if "#" in line]
    assert sum(histogram) == len(obs)


def test_info_lists_thirty_values_at_most(tiny_corpus):
    obs = tiny_corpus.obs.assign(donor=[f"d{k % 41}" for k in range(len(tiny_corpus.obs))])
    text = inspect.info(dataclasses.replace(tiny_corpus, obs=obs))
    assert "cells by donor: 41" in text and "in 11 more" in text


def test_the_command(tiny_corpus, copy):
    folder = str(tiny_corpus.folder)
    assert "every file is as it was built" in call("corpus", "verify", folder).stdout
    assert "cells by cell_type: 4" in call("corpus", "info", folder).stdout
    (copy / "tokens-00000.uint16").unlink()
    assert "tokens-00000.uint16 is missing" in call("corpus", "verify", str(copy), status=2).stderr
    assert "no manifest" in call("corpus", "verify", str(copy.parent), status=2).stderr
    call("corpus", "destroy", folder, status=1)
