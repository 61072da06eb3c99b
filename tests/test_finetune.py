"""Fine-tuning end to end: what is learned, on whom it is tested, and what a folder keeps."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import f1_score, roc_auc_score

from configs import default, finetune_cell_types
from scaling import scoring
from scaling.corpus.vocabulary import Vocabulary
from scaling.evaluate import classifier, finetune, seen, tuned_cells, tuned_genes
from scaling.evaluate.held_out import all_held_out
from scaling.evaluate.tuned_genes import GenePredictions
from scaling.evaluate.tuning import FinetuneSettings
from scaling.geneformer import files, runs
from scaling.pretrain import loop
from scaling.pretrain.model import ModelSettings
from scaling.pretrain.step import initial_params
from scaling.settings import Settings

MODEL = ModelSettings(
    layers=1, width=16, heads=2, feed_forward=16, length=64, activation="relu", dropout=0.0,
    norm_epsilon=1e-12,
)
CELLS = dataclasses.replace(
    FinetuneSettings.from_config(finetune_cell_types.get_config().to_dict()),
    learning_rate=1e-2, warmup=0.1, batch=16, epochs=8.0, buckets=1,
)
SHORT = dataclasses.replace(CELLS, epochs=0.1, warmup=0.0)
UNTRAINED = seen.Seen(np.zeros(240, bool))


def tuned(corpus, settings=CELLS, task=tuned_cells.finetune_cells, **more):
    encoder = initial_params(3, MODEL, len(corpus.vocabulary))
    return task(encoder, MODEL, corpus, settings, **more)


@pytest.fixture
def untaught(monkeypatch) -> list:
    """Cells that would have been trained on; the classifier knows nothing, and is quick."""
    cells = []
    monkeypatch.setattr(
        classifier, "train", lambda encoder, module, settings, of, devices: (cells.append(of), [])
    )

    def logits(params, module, corpus, rows, buckets, devices):
        yield np.arange(len(rows)), None, np.zeros((len(rows), module.classes), np.float32)

    monkeypatch.setattr(classifier, "logits", logits)
    return cells


def with_obs(corpus, **columns):
    return dataclasses.replace(corpus, obs=corpus.obs.assign(**columns))


@pytest.mark.slow
def test_classes_are_learned_and_shuffled_ones_are_not(tiny_corpus):
    """Whether a gene that half of the cells show stands among those that the model reads."""
    read = [set(cell[:64].tolist()) for cell in tiny_corpus.cells(np.arange(240))]
    shares = np.array([sum(k in cell for cell in read) for k in range(252)]) / 240
    gene = int(np.abs(shares - 0.5).argmin())
    labels = np.where([gene in cell for cell in read], "shows it", "does not")
    found = tuned(with_obs(tiny_corpus, cell_type=labels))
    assert np.mean(found.losses[-5:]) < 0.5 * np.mean(found.losses[:5])
    accuracy, macro_f1 = tuned_cells.scores(found)[:2]
    assert accuracy.low > 0.7 and macro_f1.low > 0.7
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    assert (np.array(found.classes)[found.probabilities.argmax(1)] == found.predicted).all()
    by_cell = dict(zip(tiny_corpus.obs["cell_id"], labels, strict=True))
    assert all(by_cell[cell] == label for cell, label in zip(found.cells, found.true, strict=True))
    shuffled = np.random.default_rng(0).permutation(labels)
    chance = tuned_cells.scores(tuned(with_obs(tiny_corpus, cell_type=shuffled)))[0]
    assert chance.low < 0.5 < chance.high and chance.high < accuracy.value


def test_floor_beside_a_tuned_classifier_is_the_commonest_class_of_its_training_cells():
    true, taught = np.array(["b", "b", "a", "c"]), np.array(["a", "b", "a", "c"])
    shares = np.full((4, 3), 1 / 3)
    found = tuned_cells.Predictions(
        np.arange(4).astype(str), true, true, shares, ("a", "b", "c"), np.full(4, ""), "by cell",
        "a note", [], taught, {},
    )
    rows = {score.name: score for score in tuned_cells.scores(found) if score.of == ""}
    assert rows["accuracy"].value == 1.0
    floor = rows["majority_accuracy"], rows["majority_macro_f1"]
    assert [score.value for score in floor] == [0.25, pytest.approx(0.4 / 3)]
    assert all(score.split == "by cell" and "a note" in score.note for score in floor)


@pytest.mark.parametrize("split", ["donor", "cell"])
def test_sides_share_no_cell_and_by_donor_no_donor(tiny_corpus, untaught, split):
    found = tuned(tiny_corpus, dataclasses.replace(SHORT, split=split))
    (cells,) = untaught
    obs = tiny_corpus.obs.iloc[cells.rows]
    names = np.array(found.classes)[cells.classes]
    assert (obs["cell_type"] == names).all()
    assert not set(obs["cell_id"]) & set(found.cells)
    assert len(obs) + len(found.cells) == len(tiny_corpus.obs)
    assert 0.15 < len(found.cells) / len(tiny_corpus.obs) < 0.5
    assert found.split.startswith(f"by {split}: ")
    if split == "donor":
        assert not set(obs["donor"]) & set(found.donors)
        assert all(donor in found.split for donor in set(found.donors))
    else:
        assert set(obs["donor"]) == set(tiny_corpus.obs["donor"])
    other = tuned(tiny_corpus, dataclasses.replace(SHORT, split="cell", seed=1))
    assert set(other.cells) != set(found.cells)


def test_what_is_left_out_is_said(tiny_corpus, untaught):
    labels, donors = (tiny_corpus.obs[name].to_list() for name in ("cell_type", "donor"))
    labels[:7], labels[7], donors[8:10] = [""] * 7, "rare", [""] * 2
    corpus = with_obs(tiny_corpus, cell_type=labels, donor=donors)
    found = tuned(corpus, dataclasses.replace(SHORT, min_share=0.01, split="donor"))
    assert "7 cells without a label left out" in found.note
    assert "classes below 1.00% of the cells left out: rare (1)" in found.note
    assert "2 cells without a donor left out" in found.note and "rare" not in found.classes
    few = tuned(corpus, dataclasses.replace(SHORT, cells=50))
    assert len(few.cells) == 10 and few.split == "by cell: 10 of 50 drawn to test on"


def test_a_training_cell_that_equals_a_test_cell_is_left_out(tiny_corpus):
    obs, note = tiny_corpus.obs.assign(fingerprint=np.arange(240) % 230), []
    train, test, _ = tuned_cells.divide(obs, SHORT, note, UNTRAINED)
    assert not set(train["fingerprint"]) & set(test["fingerprint"])
    left = 240 - len(test) - len(train)
    assert left > 0 and note == [f"{left} training cells equal to a test cell left out"]


def test_a_class_without_a_training_cell_counts_as_missed(tiny_corpus, untaught):
    """The class of the donors that are tested on alone."""
    settings = dataclasses.replace(SHORT, split="donor", min_share=0.0)
    donors = set(tuned(tiny_corpus, settings).donors)
    unseen = np.where(tiny_corpus.obs["donor"].isin(donors) & (np.arange(240) % 2 == 0), "unseen",
                      tiny_corpus.obs["cell_type"])  # fmt: skip
    found = tuned(with_obs(tiny_corpus, cell_type=unseen), settings)
    assert "classes without a training cell, never predicted: unseen" in found.note
    assert (found.true == "unseen").any()


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        ({"cell_type": ""}, {}, r"labels of its cells are \[\], .*data.cell_type"),
        ({"cell_type": "B"}, {}, r"are \['B'\], and a classifier needs two"),
        ({"donor": ""}, {"split": "donor"}, "0 labelled cells are of 0 donors; .*data.donor"),
        ({"fingerprint": 1}, {}, "every training cell equals"),
        ({}, {"frozen_layers": 2}, "the run's model has 1 layers"),
        ({}, {"warmup": 500}, "warmup is 500 steps"),
    ],
)
def test_cells_that_cannot_teach_are_refused(tiny_corpus, columns, changes, message):
    with pytest.raises(ValueError, match=message):
        tuned(with_obs(tiny_corpus, **columns), dataclasses.replace(CELLS, **changes))


def test_a_training_side_of_one_class_is_refused(tiny_corpus, untaught):
    settings = dataclasses.replace(CELLS, split="donor")
    donors = set(tuned(tiny_corpus, dataclasses.replace(SHORT, split="donor")).donors)
    labels = np.where(tiny_corpus.obs["donor"].isin(donors), "B", "T")
    with pytest.raises(ValueError, match="all training cells are of the class 'T'"):
        tuned(with_obs(tiny_corpus, cell_type=labels), settings)


def test_macro_f1_is_sklearns(tiny_corpus, untaught):
    found = tuned(tiny_corpus, SHORT)
    rng = np.random.default_rng(0)
    names, size = np.array(found.classes), len(found.true)
    found = dataclasses.replace(
        found, true=rng.choice(names[:3], size), predicted=rng.choice(names, size)
    )
    accuracy, macro_f1 = tuned_cells.scores(found)[:2]
    labels = sorted(set(found.true))
    wanted = f1_score(found.true, found.predicted, labels=labels, average="macro")
    assert macro_f1.value == pytest.approx(wanted) and macro_f1.low < wanted < macro_f1.high
    assert accuracy.value == pytest.approx((found.true == found.predicted).mean())
    assert accuracy.split == found.split and accuracy.n == size


# Genes.


@pytest.fixture(scope="module")
def gene_table(tiny_corpus, tmp_path_factory):
    """Classes that position tells: of the commoner genes, those of high rank and of low."""
    places: dict[int, list[int]] = {}
    for cell in tiny_corpus.cells(np.arange(240)):
        for place, token in enumerate(cell[:64]):
            places.setdefault(int(token), []).append(place)
    ranked = sorted((np.mean(at), token) for token, at in places.items() if len(at) > 20)
    genes = [tiny_corpus.vocabulary.genes[token - 2] for _, token in ranked]
    path = tmp_path_factory.mktemp("genes") / "classes.csv"
    table = {"high": [*genes[:20], "ENSG_NONE"], "low": genes[-25:]}
    pd.DataFrame({name: pd.Series(of) for name, of in table.items()}).to_csv(path, index=False)
    return path, table


def genes_settings(gene_table, **changes) -> FinetuneSettings:
    made = {"task": "genes", "pooling": "none", "gene_classes": str(gene_table[0]), "folds": 3}
    return dataclasses.replace(CELLS, **{**made, "epochs": 6.0, **changes})


@pytest.mark.slow
def test_genes_are_learned_by_genes_that_are_not_tested(tiny_corpus, monkeypatch, gene_table):
    taught, real = [], classifier.train

    def train(encoder, module, settings, cells, devices):
        taught.append(cells)
        return real(encoder, module, settings, cells, devices)

    monkeypatch.setattr(classifier, "train", train)
    encoder = initial_params(3, MODEL, len(tiny_corpus.vocabulary))
    encoder = {**encoder, "positions": 10 * encoder["positions"]}
    settings = genes_settings(gene_table, frozen_embedding=True)
    found = tuned_genes.finetune_genes(encoder, MODEL, tiny_corpus, settings)
    assert found.classes == ("high", "low") and "1 of 46 genes have no token" in found.note
    token = {gene: k + 2 for k, gene in enumerate(tiny_corpus.vocabulary.genes)}
    for gene, number in zip(found.genes, found.true, strict=True):
        assert gene in gene_table[1][found.classes[number]]
    for number, cells in enumerate(taught):
        out, others = (found.genes[mine] for mine in (found.fold == number, found.fold != number))
        assert (cells.classes[[token[gene] for gene in out]] == -1).all()
        wanted = found.true[found.fold != number]
        np.testing.assert_array_equal(cells.classes[[token[gene] for gene in others]], wanted)
        assert (cells.classes >= 0).sum() == len(others)
    _, test, _ = tuned_cells.divide(tiny_corpus.obs, settings, [], UNTRAINED)
    rows = test.index.to_numpy()
    assert not set(rows) & set(taught[0].rows)
    read = np.concatenate([cell[:64] for cell in tiny_corpus.cells(rows)])
    for gene, logits in zip(found.genes, found.logits, strict=True):
        assert logits.shape == ((read == token[gene]).sum(), 2)
    by_name = {(score.name, score.of): score for score in tuned_genes.scores(found)}
    mean = by_name["auroc_genes", ""]
    assert mean.low > 0.7 and mean.interval == f"{len(found.genes)} genes"
    assert by_name["auroc_occurrences", ""].low > 0.5
    assert mean.value == pytest.approx(
        np.mean([by_name["auroc_genes", f"fold {k}"].value for k in (1, 2, 3)])
    )


def simulated_genes(seed: int, separation: float = 1.0) -> GenePredictions:
    rng = np.random.default_rng(seed)
    true = np.arange(120) % 2
    logits = [
        np.round(rng.normal(size=(rng.integers(1, 9), 2)) + [0, separation * number], 1)
        for number in true
    ]
    fold = np.arange(120) // 2 % 4
    return GenePredictions(np.arange(120).astype(str), true, fold, logits, ("a", "b"), "how", "why")


def test_auroc_is_sklearns_for_genes_and_for_occurrences():
    found = simulated_genes(0)
    margins, mine = [x[:, 1] - x[:, 0] for x in found.logits], found.fold != 2
    weights = np.random.default_rng(1).integers(0, 3, size=(3, 120)).astype(float)
    area = tuned_genes.auroc(margins, found.true, mine)(weights)
    at = np.repeat(np.arange(120), [len(x) for x in margins])
    for row, value in zip(weights, area, strict=True):
        weight = (row * mine)[at]
        counted = weight > 0
        wanted = roc_auc_score(
            found.true[at][counted], np.concatenate(margins)[counted], sample_weight=weight[counted]
        )
        assert value == pytest.approx(wanted)
    rows = {(s.name, s.of): s for s in tuned_genes.scores(found)}
    of_gene = found.mean_logits[:, 1] - found.mean_logits[:, 0]
    folds, times = range(4), np.bincount(found.fold[at])
    by_gene = [roc_auc_score(found.true[found.fold == k], of_gene[found.fold == k]) for k in folds]
    values = np.concatenate(margins)
    by_occurrence = [
        roc_auc_score(found.true[at][found.fold[at] == k], values[found.fold[at] == k])
        for k in folds
    ]
    assert rows["auroc_genes", "fold 3"].value == pytest.approx(by_gene[2])
    assert rows["auroc_genes", ""].value == pytest.approx(np.mean(by_gene))
    weighted = np.average(by_occurrence, weights=times)
    assert rows["auroc_occurrences", ""].value == pytest.approx(weighted)
    assert rows["auroc_genes", ""].note == "why" and rows["auroc_genes", ""].split == "how"


def test_auroc_where_the_answer_is_known():
    def of(found):
        return {(s.name, s.of): s for s in tuned_genes.scores(found)}["auroc_genes", ""]

    assert of(simulated_genes(0, 100.0)).value == 1.0
    assert of(simulated_genes(0, -100.0)).value == 0.0
    chance = of(simulated_genes(0, 0.0))
    assert chance.low < 0.5 < chance.high
    one = dataclasses.replace(simulated_genes(0), true=np.zeros(120, int))
    assert of(one).value is None and of(one).interval == ""
    three = dataclasses.replace(simulated_genes(0), classes=("a", "b", "c"))
    assert of(three).value is None and "3 classes" in of(three).note


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (None, {}, "no table of genes"),
        ("a,b\nX,Y\n", {}, "0 of its 2 genes"),
        ("a,b\n{0},{0}\n", {}, "is of 'a' and of 'b'"),
        ("a\n{0}\n", {}, "each of two classes"),
        ("a,b\n{0},{1}\n", {"folds": 3}, "1 a, 1 b are in the test cells, and each class needs"),
    ],
)
def test_genes_that_cannot_be_classified_are_refused(
    tiny_corpus, gene_table, tmp_path, text, changes, message
):
    path = tmp_path / "genes.csv"
    if text:
        path.write_text(text.format(*gene_table[1]["low"]))
    settings = genes_settings(gene_table, gene_classes=str(path), **changes)
    with pytest.raises(ValueError, match=message):
        tuned(tiny_corpus, settings, tuned_genes.finetune_genes)


# Folders.


def pretraining() -> Settings:
    config = default.get_config()
    config.model.update(dataclasses.asdict(MODEL))
    config.train.update({"steps": 30, "epochs": 0.0, "batch": 8, "held_out_cells": 8, "cells": 100})
    return Settings.from_config(config)


@pytest.fixture(scope="module")
def run(tiny_corpus, tmp_path_factory):
    """A run of a few steps, on 100 of the cells."""
    folder = tmp_path_factory.mktemp("run") / "run"
    loop.pretrain(pretraining().run, tiny_corpus, folder)
    return folder


def test_a_folder_keeps_what_was_found(tiny_corpus, run, tmp_path, monkeypatch):
    folder = tmp_path / "tuned"
    rows = finetune.finetune(SHORT, run, tiny_corpus, folder)
    assert [row["score"] for row in rows[:2]] == ["accuracy", "macro_f1"]
    assert rows[0]["start"] == "pretrained" and rows[0]["task"] == "finetuned_cells"
    assert rows[0]["model"] == json.loads((run / "settings.json").read_text())["hash"]
    table = pd.read_parquet(folder / "predictions.parquet")
    assert (table["true"] == table["predicted"]).mean() == pytest.approx(rows[0]["value"])
    untrained = dataclasses.replace(SHORT, start="untrained")
    other = finetune.finetune(untrained, run, tiny_corpus, tmp_path / "other")
    assert other[0]["finetune"] != rows[0]["finetune"]
    before = pd.read_parquet(tmp_path / "other" / "predictions.parquet")
    assert (before.iloc[:, 4:] != table.iloc[:, 4:]).any().any()
    few = dataclasses.replace(SHORT, warmup=500.0)
    with pytest.raises(ValueError, match="finetune.warmup is 500 steps"):
        finetune.finetune(few, run, tiny_corpus, tmp_path / "mended")
    assert finetune.finetune(SHORT, run, tiny_corpus, tmp_path / "mended") == rows
    monkeypatch.setattr(classifier, "train", None)
    assert finetune.finetune(SHORT, run, tiny_corpus, folder) == rows
    with pytest.raises(ValueError, match="holds a fine-tuning of other settings"):
        finetune.finetune(untrained, run, tiny_corpus, folder)
    assert not list(folder.glob("*.partial"))


FIRST = dataclasses.replace(SHORT, pooling="first", learning_rate=0.1)


def test_a_classifier_is_kept_as_files_where_bert_has_its_like(tiny_corpus, run, tmp_path):
    finetune.finetune(FIRST, run, tiny_corpus, tmp_path / "first")
    table = pd.read_parquet(tmp_path / "first" / "predictions.parquet").set_index("cell_id")
    found = files.read(tmp_path / "first" / "classifier")
    assert [f"p({name})" for name in found.labels] == table.columns[3:].tolist()
    module = tuned_cells.head(MODEL, tiny_corpus, FIRST, len(found.labels))
    words = Vocabulary.load(tmp_path / "first" / "classifier" / "vocabulary.json")
    assert found.model == module.model and words.hash == tiny_corpus.vocabulary.hash
    with pytest.raises(ValueError, match="holds no run; give .* of a fine-tuning its classifier"):
        runs.encoder(tmp_path / "first")
    rows = tiny_corpus.obs.index[tiny_corpus.obs["cell_id"].isin(table.index)].to_numpy()
    unread = {"bias": np.zeros(len(tiny_corpus.vocabulary))}
    params = {**found.params, "encoder": unread | found.params["encoder"]}
    for places, _, logits in classifier.logits(params, module, tiny_corpus, rows, 1):
        wanted = table.loc[tiny_corpus.obs.loc[rows[places], "cell_id"]].iloc[:, 3:]
        np.testing.assert_allclose(softmax(logits, axis=1), wanted, atol=1e-6)
    assert len(rows) == len(table) and wanted.std(axis=0).min() > 1e-5
    assert finetune.not_kept(FIRST, run) == ""
    finetune.finetune(SHORT, run, tiny_corpus, tmp_path / "mean")
    assert not (tmp_path / "mean" / "classifier").exists()
    assert "no place for finetune.pooling=mean; give" in finetune.not_kept(SHORT, run)
    bins = dataclasses.replace(MODEL, encoding="bins")
    assert "no place for model.encoding=bins" in classifier.not_written("first", bins)


@pytest.mark.slow
def test_the_transformers_library_classifies_as_we_do(tiny_corpus, run, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install -e '.[bench]'")
    theirs = pytest.importorskip("transformers", reason="parity needs transformers")
    finetune.finetune(FIRST, run, tiny_corpus, tmp_path / "tuned")
    folder = tmp_path / "tuned" / "classifier"
    model = theirs.BertForSequenceClassification.from_pretrained(folder).eval()
    table = pd.read_parquet(tmp_path / "tuned" / "predictions.parquet")
    row = tiny_corpus.obs.index[tiny_corpus.obs["cell_id"] == table["cell_id"][0]]
    cell = torch.tensor(tiny_corpus.tokens(row.to_numpy(), MODEL.length).astype(np.int64))
    with torch.no_grad():
        found = model(cell, attention_mask=(cell != 0).long()).logits
    shares = torch.softmax(found, 1)[0].tolist()
    names = [f"p({model.config.id2label[k]})" for k in range(len(shares))]
    ours = table.iloc[0, 4:].to_dict()
    assert dict(zip(names, shares, strict=True)) == pytest.approx(ours, abs=1e-5)


@pytest.mark.slow
def test_folds_that_are_done_are_not_done_again(
    tiny_corpus, run, tmp_path, monkeypatch, gene_table
):
    settings, real = genes_settings(gene_table, epochs=0.2, warmup=0.0), classifier.train
    wanted = finetune.finetune(settings, run, tiny_corpus, tmp_path / "whole")
    calls = []

    def train(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(classifier, "train", train)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(settings, run, tiny_corpus, tmp_path / "cut")
    kept = sorted(p.name for p in (tmp_path / "cut").iterdir())
    assert kept == ["fold-1", "fold-1.npz", "settings.json"]
    assert files.read(tmp_path / "cut" / "fold-1").labels == ("high", "low")
    assert finetune.finetune(settings, run, tiny_corpus, tmp_path / "cut") == wanted
    assert len(calls) == 4


def test_runs_that_do_not_fit_are_refused(tiny_corpus, run, tmp_path):
    with pytest.raises(ValueError, match="no settings.json; give the folder of a trained run"):
        finetune.finetune(SHORT, tmp_path, tiny_corpus, tmp_path / "tuned")
    genes = dataclasses.replace(
        tiny_corpus.vocabulary, medians=2 * tiny_corpus.vocabulary.medians
    )
    with pytest.raises(ValueError, match="was trained with vocabulary .* data.vocabulary="):
        other = dataclasses.replace(tiny_corpus, vocabulary=genes)
        finetune.finetune(SHORT, run, other, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


# Cells that the run was pretrained on.


def changed(run, folder, **fields):
    """The run's record elsewhere, with other fields; None takes one out."""
    folder.mkdir()
    shutil.copytree(run / "checkpoints", folder / "checkpoints")
    held = json.loads((run / "settings.json").read_text()) | fields
    kept = {name: value for name, value in held.items() if value is not None}
    (folder / "settings.json").write_text(json.dumps(kept))
    return folder


def another(corpus, **columns):
    """A corpus of the same cells that is not the run's."""
    checksums = {"obs.parquet": "another"}
    corpus = dataclasses.replace(corpus, manifest=corpus.manifest | {"checksums": checksums})
    return with_obs(corpus, **columns)


def test_cells_pretrained_on_are_known_in_any_corpus_while_the_runs_own_stands(
    tiny_corpus, run, tmp_path
):
    wanted = np.zeros(240, bool)
    wanted[loop.rows_trained_on(run, tiny_corpus)] = True
    assert wanted.sum() == 100
    np.testing.assert_array_equal(seen.of_run(run, tiny_corpus).cells, wanted)
    prints = tiny_corpus.obs["fingerprint"].to_numpy()
    prints = np.where(np.arange(240) < 120, prints, np.arange(240, dtype=np.uint64))
    other = another(tiny_corpus, fingerprint=prints)
    found = seen.of_run(run, other)
    np.testing.assert_array_equal(found.cells, wanted & (np.arange(240) < 120))
    rows = np.arange(100, 140)
    told = f"the run was pretrained on {wanted[100:120].sum()} of 40 test cells"
    assert found.note(rows, "test") == told and found.note(rows[20:], "test") == ""
    masking = json.loads((run / "settings.json").read_text())["masking"]
    unknown = {
        "moved": {"corpus": str(tmp_path / "nowhere")},
        "replaced": {"hash": "of another"},
        "unread": {"masking": masking | {"programs": str(tmp_path / "gone.gmt")}},
        "converted": {"train": None, "corpus": None, "classes": None},
    }
    for name, fields in unknown.items():
        found = seen.of_run(changed(run, tmp_path / name, **fields), other)
        assert found.cells is None, name
        assert found.note(rows, "test").startswith("it is not known whether the run was")
    files = [file | {"wrong_lengths": 0} for file in tiny_corpus.manifest["files"]]
    tokenised = dataclasses.replace(other, manifest=other.manifest | {"files": files})
    assert seen.of_run(run, tokenised).cells is None


def test_rows_say_which_test_cells_were_pretrained_on(tiny_corpus, run, tmp_path, untaught):
    rows = finetune.finetune(SHORT, run, another(tiny_corpus), tmp_path / "tuned")
    tested = pd.read_parquet(tmp_path / "tuned" / "predictions.parquet")["cell_id"]
    own = loop.rows_trained_on(run, tiny_corpus)
    count = tested.isin(tiny_corpus.obs["cell_id"].iloc[own]).sum()
    assert 0 < count < len(tested)
    told = f"the run was pretrained on {count} of {len(tested)} test cells"
    assert all(row["note"].endswith(told) for row in rows)
    untrained = dataclasses.replace(SHORT, start="untrained")
    rows = finetune.finetune(untrained, run, tiny_corpus, tmp_path / "untrained")
    assert not any("pretrained" in row["note"] for row in rows)
    assert "not known whether the run was pretrained on test" in tuned(tiny_corpus, SHORT).note


@pytest.mark.parametrize("split", ["cell", "donor"])
def test_after_annotations_only_cells_not_pretrained_on_are_tested(
    tiny_corpus, run, tmp_path, untaught, split
):
    taught = changed(run, tmp_path / "run", classes={"sex": ["f", "m"]})
    settings = dataclasses.replace(SHORT, split=split, test_share=0.5)
    everything = tuned(tiny_corpus, settings)
    finetune.finetune(settings, taught, another(tiny_corpus), tmp_path / "tuned")
    table = pd.read_parquet(tmp_path / "tuned" / "predictions.parquet")
    rows = loop.rows_trained_on(run, tiny_corpus)
    own = np.isin(everything.cells, tiny_corpus.obs["cell_id"].iloc[rows])
    assert own.any() and table["cell_id"].tolist() == everything.cells[~own].tolist()
    scored = (tmp_path / "tuned" / "scores.jsonl").read_text()
    told = f"{own.sum()} test cells left out, on which, and on their sex, the run was pretrained"
    assert told in scored and "not known" not in scored


def test_annotations_of_all_test_cells_or_of_unknown_ones_are_refused(
    tiny_corpus, run, tmp_path, untaught
):
    taught = changed(run, tmp_path / "run", classes={"sex": [], "tissue": []})
    pool = tiny_corpus.obs.iloc[loop.rows_trained_on(run, tiny_corpus)]
    prints = np.resize(pool["fingerprint"].to_numpy(), 240)
    message = r" was pretrained on annotations \(supervision.columns has sex, tissue\)"
    other = another(tiny_corpus, fingerprint=prints)
    with pytest.raises(ValueError, match=f"{taught}{message} of all 48 test cells; give cells"):
        finetune.finetune(SHORT, taught, other, tmp_path / "tuned")
    gone = {"corpus": str(tmp_path / "nowhere"), "classes": {"sex": [], "tissue": []}}
    gone = changed(run, tmp_path / "gone", **gone)
    with pytest.raises(ValueError, match=f"{gone}{message}, .* is not known: .*; bring it"):
        finetune.finetune(SHORT, gone, another(tiny_corpus), tmp_path / "tuned")


def test_classes_of_genes_may_be_tested_in_cells_with_annotations(tiny_corpus, gene_table):
    """They are: what is refused comes after the cells are divided."""
    everything = seen.Seen(np.ones(240, bool), ("sex",))
    with pytest.raises(ValueError, match="each class needs finetune.folds = 100"):
        settings = genes_settings(gene_table, folds=100)
        tuned(tiny_corpus, settings, tuned_genes.finetune_genes, seen=everything)


def test_scored_cells_of_another_corpus_may_have_been_pretrained_on(
    tiny_corpus, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(scoring, "score_params", lambda *of: [
        {"dataset": "cells", "note": "few"}, {"dataset": "cells", "note": ""}
    ])  # fmt: skip
    settings = pretraining()

    def notes(run, corpus):
        held_out = all_held_out(corpus, settings.evaluate)
        return [row["note"] for row in scoring.evaluate_run(run, settings.run, held_out)]

    assert notes(run, tiny_corpus) == ["few", ""]
    own = np.zeros(240, bool)
    own[loop.rows_trained_on(run, tiny_corpus)] = True
    split = np.where(np.arange(240) < 90, "held_out", "pool")
    told = f"the run was pretrained on {own[:90].sum()} of 90 scored cells"
    assert notes(run, another(tiny_corpus, split=split)) == [f"few; {told}", told]
    assert notes(run, another(tiny_corpus)) == ["few", ""]
    gone = changed(run, tmp_path / "gone", corpus=str(tmp_path / "nowhere"))
    told = "it is not known whether the run was pretrained on scored cells"
    assert notes(gone, another(tiny_corpus)) == [f"few; {told}", told]


@pytest.mark.slow
def test_the_entry_point_builds_the_cells_in_the_runs_vocabulary(run, tiny_corpus, tmp_path):
    h5ad = tiny_corpus.manifest["files"][0]["path"]

    def call(config, *arguments):
        fixed = "--config", f"configs/{config}.py", f"--workdir={tmp_path / 'w'}"
        fixed += (f"--checkpoint={run}",)
        return subprocess.run(
            [sys.executable, "-m", "experiments.finetune", *fixed, *arguments],
            cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True,
            env={**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip

    few = f"--config.data.h5ad={h5ad}", "--config.finetune.warmup=2"
    short = "--config.finetune.epochs=0.3"
    wrong = call("finetune_cell_types", *few, short, "--config.data.cell_type=kind")
    assert wrong.returncode == 2 and "no column 'kind'" in wrong.stderr
    found = call("finetune_cell_types", *few, short)
    assert found.returncode == 0, found.stderr
    assert "no classifier is kept (BERT has no place for finetune.pooling=mean" in found.stdout
    header, first = (line.split() for line in found.stdout.splitlines()[:2])
    assert header == ["score", "value", "low", "high", "n"]
    assert first[0] == "accuracy" and 0 <= float(first[1]) <= 1
    assert call("finetune_cell_types", *few, short).stdout == found.stdout
    none = call("quickstart", *few[:1])
    assert none.returncode == 2 and "no part 'finetune'" in none.stderr
