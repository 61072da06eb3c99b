"""Tasks over representations: what is asked, what cannot be, and a model's way from counts."""

import dataclasses

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from configs import smoke
from scaling.evaluate import cell_types, noise, representations, scores
from scaling.evaluate.held_out import EvaluateSettings, HeldOut, all_held_out
from scaling.evaluate.representations import Representation
from scaling.pretrain import step
from scaling.settings import Settings

MODEL = Settings.from_config(smoke.get_config()).run.model
SETTINGS = EvaluateSettings(-2, 100, (), 0)


def held_out(corpus, **changes) -> HeldOut:
    cells = changes.get("cells", SETTINGS.cells)
    [data] = all_held_out(corpus, dataclasses.replace(SETTINGS, cells=cells))
    data.settings = dataclasses.replace(SETTINGS, **changes)
    return data


def rows_of(corpus, embedding=None, **changes):
    data = held_out(corpus, **changes)
    if embedding is None:
        embedding = np.random.default_rng(0).normal(size=(len(data.rows), 4))
    return scores.rows_of_representation(Representation(lambda _: embedding), data)


def test_a_model_embeds_counts_as_it_embeds_the_corpus(tiny_corpus):
    params = step.initial_params(0, MODEL, len(tiny_corpus.vocabulary))
    data = held_out(tiny_corpus)
    model = representations.of_model(params, MODEL, SETTINGS, tiny_corpus)
    found = model.embed(data)
    np.testing.assert_array_equal(model.of_counts(data.counts, data.totals), found)
    silent = data.counts.copy()
    silent.data[silent.indptr[1] : silent.indptr[2]] = 0
    silent.eliminate_zeros()
    again = model.of_counts(silent, data.totals)
    assert np.isnan(again[1]).all()
    np.testing.assert_array_equal(np.delete(again, 1, 0), np.delete(found, 1, 0))


@pytest.mark.parametrize("name", representations.FITTED)
def test_baselines_embed_counts_as_they_embed_held_out_cells(tiny_corpus, name):
    pool = np.flatnonzero(tiny_corpus.obs["split"] == "pool")
    data = held_out(tiny_corpus)
    fitted = representations.fit_baselines(tiny_corpus, pool, (name, "majority"))
    assert list(fitted) == [name]
    found = fitted[name].embed(data)
    assert found.shape[0] == len(data.rows) and np.isfinite(found).all()
    np.testing.assert_array_equal(fitted[name].of_counts(data.counts, data.totals), found)


def test_baselines_are_fitted_on_the_cells_given_alone(tiny_corpus):
    pool = np.flatnonzero(tiny_corpus.obs["split"] == "pool")
    data = held_out(tiny_corpus)
    some, more = (
        representations.fit_baselines(tiny_corpus, rows, ("pca",))["pca"].embed(data)
        for rows in (pool[:60], pool)
    )
    assert not np.allclose(some[:, :4], more[:, :4])


def test_only_the_tasks_asked_for_are_scored(tiny_corpus):
    default = {"cell_types", "batch_mixing", "confounds"}
    assert {row["task"] for row in rows_of(tiny_corpus)} == default
    asked = rows_of(tiny_corpus, tasks=("cell_types",))
    assert {row["task"] for row in asked} == {"cell_types"}
    name = asked[0]["dataset"]
    assert {row["task"] for row in rows_of(tiny_corpus, no_batch_mixing=(name,))} == {
        "cell_types", "confounds"
    }  # fmt: skip


def test_rows_name_the_cells_and_what_scored_them(tiny_corpus):
    rows = rows_of(tiny_corpus, tasks=("cell_types",))
    fields = {"task", "dataset", "dataset_hash", "score", "of", "value", "low", "high", "interval"}
    fields |= {"n", "split", "note", "positions", "read_from", "evaluation_seed", "scored_by"}
    assert all(set(row) == fields for row in rows)
    assert len({row["dataset_hash"] for row in rows}) == 1
    fewer = rows_of(tiny_corpus, tasks=("cell_types",), cells=40)
    assert fewer[0]["dataset_hash"] != rows[0]["dataset_hash"]


def test_what_embeds_no_counts_has_no_noise_scores_and_says_why(tiny_corpus):
    [accuracy, _] = rows_of(tiny_corpus, tasks=("noise",))
    assert accuracy["value"] is None and "only the cells" in accuracy["note"]


def test_labels_that_the_embedding_knows_are_told_and_shuffled_ones_are_not(tiny_corpus):
    """Scores fall to chance once the labels are shuffled: they read nothing but the embedding."""
    data = held_out(tiny_corpus)
    types, codes = np.unique(data.labels, return_inverse=True)
    known = np.eye(len(types))[codes] + np.random.default_rng(0).normal(0, 0.1, (len(codes), 4))

    def accuracies(labels):
        data.obs["cell_type"], data.labels = labels, labels
        rows = scores.rows_of_representation(Representation(lambda _: known), data)
        return {r["score"]: r for r in rows if r["of"] == "" and r["value"] is not None}

    true = data.labels
    before = accuracies(true)
    after = [accuracies(np.random.default_rng(seed).permutation(true)) for seed in range(6)]
    largest = np.unique(true, return_counts=True)[1].max() / len(true)
    for name in ("knn_accuracy", "logistic_accuracy", "knn_macro_f1", "logistic_macro_f1"):
        assert before[name]["value"] > (0.95 if name.endswith("accuracy") else 0.6)
        assert np.mean([of[name]["value"] for of in after]) < largest + 0.05, name
    assert before["avg_bio"]["value"] > 0.8
    for name, chance in {"avg_bio": 0.4, "ari": 0.1, "nmi": 0.35, "asw_label": 0.55}.items():
        assert np.mean([of[name]["value"] for of in after]) < chance, name


def test_a_representation_is_scored_with_its_published_classifier_too(tiny_corpus):
    pool = np.flatnonzero(tiny_corpus.obs["split"] == "pool")
    data = held_out(tiny_corpus, tasks=("cell_types",))
    fitted = representations.fit_baselines(tiny_corpus, pool, ("pca", "parameter_free"))
    found = {
        name: {row["score"]: row for row in scores.rows_of_representation(of, data)}
        for name, of in fitted.items()
    }
    assert not any(score.startswith("published") for score in found["pca"])
    split, of = scores.Split.of(data), fitted["parameter_free"]
    x_NxD = of.embed(data)
    regression = LogisticRegression(class_weight="balanced", max_iter=5_000)
    regression.fit(x_NxD[split.fit].astype(float), data.labels[split.fit])
    row = found["parameter_free"]["published_accuracy"]
    tested = x_NxD[split.test].astype(float), data.labels[split.test]
    assert row["value"] == pytest.approx(regression.score(*tested))
    assert "balanced" in row["note"]


def test_a_stimulus_is_foreseen_and_its_baselines_stand_beside(tiny_corpus):
    name = held_out(tiny_corpus).name
    data = held_out(tiny_corpus, tasks=("perturbation",), stimulus={name: ("no", "yes")})
    data.batches = np.resize(["no", "yes"], len(data.rows))
    given = Representation(lambda data: np.eye(len(data.rows)), lambda *counts: None)
    rows = scores.rows_of_representation(given, data)
    assert rows and {row["task"] for row in rows} == {"perturbation"}
    assert not any("fitted to" in row["note"] for row in rows)
    fitted_to_these = Representation(lambda data: np.eye(len(data.rows)))
    rows = scores.rows_of_representation(fitted_to_these, data)
    assert rows and all(row["value"] is None for row in rows)
    assert {row["note"] for row in rows} == {
        "it is fitted to the cells that it embeds, the stimulated ones too"
    }
    beside = scores.rows_of_responses(data)
    assert set(beside) == {"no_change", "training_mean", "nearest_type", "pca_regression"}


def test_a_screen_is_scored_with_gene_embeddings_and_its_baselines(tiny_corpus, tmp_path):
    genes, name = tiny_corpus.vocabulary.genes, held_out(tiny_corpus).name
    table = tmp_path / "names.csv"
    table.write_text("gene_name,ensembl_id\n" + "".join(f"S{i},{g}\n" for i, g in enumerate(genes)))
    data = held_out(
        tiny_corpus, tasks=("perturbation",), screens={name: "ctrl"}, gene_names=str(table)
    )
    # Cells of a perturbation show its gene and the next one more; S1 is the symbol of genes[1].
    kinds = ["ctrl", "S1", "S2+ctrl", "S3", "S4", "S5", "S1+S2", "S3+S4", "S2+S5", "S1+S4"]
    counts = np.random.default_rng(0).poisson(200.0, (4 * len(data.rows), len(genes)))
    data.batches, data.donors = np.resize(kinds, len(counts)), np.tile(data.donors, 4)
    for i in range(1, 6):
        counts[np.array([f"S{i}" in kind for kind in data.batches]), i : i + 2] += 200
    data.counts, data.totals = sparse.csr_matrix(counts), counts.sum(1).astype(float)
    known = np.eye(len(genes), dtype=np.float32)
    known[5] = np.nan  # has no embedding
    given = Representation(lambda data: None, genes=lambda data: {"table": known})
    rows = scores.rows_of_representation(given, data)
    by = {(row["score"], row["of"]): row for row in rows}
    assert {row["task"] for row in rows} == {"perturbation"}
    ids = "+".join(sorted((genes[1], genes[2])))
    assert by["combinations_r2", f"{ids}, table"]["value"] is not None
    assert by["perturbations_r2", f"{genes[5]}, table"]["note"] == f"no embedding of {genes[5]}"
    assert "1 of 5 perturbations have no value" in by["perturbations_r2", "table"]["note"]
    beside = scores.rows_of_responses(data)
    assert set(beside) == {"no_change", "training_mean", "additive", "pca_regression"}
    additive = {row["score"]: row["value"] for row in beside["additive"] if row["of"] == ""}
    assert additive["combinations_r2"] > 0.8
    assert not any(score.startswith("perturbations") for score in additive)


def test_harmony_without_batches_has_a_note_and_not_an_error(tiny_corpus):
    data = held_out(tiny_corpus)  # of one batch
    harmony = representations.fit_baselines(tiny_corpus, np.arange(9), ("harmony",))["harmony"]
    rows = scores.rows_of_representation(harmony, data)
    assert {row["value"] for row in rows} == {None} and "there must be two" in rows[0]["note"]
    assert {row["task"] for row in rows} == {"cell_types", "batch_mixing", "confounds"}
    both = "cell_types", "batch_mixing"
    asked = held_out(tiny_corpus, tasks=both, no_batch_mixing=(data.name,))
    rows = scores.rows_of_representation(harmony, asked)
    assert {row["task"] for row in rows} == {"cell_types"}
    data.batches = np.resize(["a", "b"], len(data.rows))
    assert harmony.lacks(data) == "" and harmony.embed(data).shape[0] == len(data.rows)


def test_classifiers_are_fitted_where_probes_are(tiny_corpus):
    data = held_out(tiny_corpus, tasks=("cell_types",))
    found = scores.rows_of_classifiers(("majority", "hvg"), data)
    assert list(found) == ["majority"]
    divided = scores.Split.of(data)
    assert found["majority"][0]["split"] == divided.how and found["majority"][0]["n"] == len(
        divided.test
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tasks": ("cell_type",)}, r"evaluate.tasks has \['cell_type'\]"),
        ({"baselines": ("PCA",)}, r"evaluate.baselines has \['PCA'\]"),
        ({"tasks": ("ontology",)}, "'ontology', which needs evaluate.ontology"),
        ({"tasks": ("ontology",), "ontology": "no.obo"}, "files that are not there: no.obo"),
        ({"tasks": ("gene_sets",), "gene_sets": "no.gmt"}, "files that are not there: no.gmt"),
        ({"pool": "last"}, "evaluate.pool is 'last'"),
        ({"cells": 0}, "evaluate.cells is 0; give"),
        ({"tasks": ("perturbation",)}, "needs evaluate.stimulus or evaluate.screens"),
        ({"tasks": ("gene_sets",)}, "evaluate.gene_labels or evaluate.gene_sets"),
    ],
)
def test_settings_that_ask_for_what_there_is_not(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"no_batch_mixing": ("celsl",)}, "no_batch_mixing names 'celsl'.* are cells"),
        ({"stimulus": {"celsl": ("a", "b")}}, "stimulus names 'celsl'.* are cells"),
        ({"screens": {"celsl": "ctrl"}}, "screens names 'celsl'.* are cells"),
        ({"stimulus": {"cells": ("batch_02", "STM")}}, "stimulus.cells names 'STM'.*batch_02"),
        ({"screens": {"cells": "ctl"}}, "screens.cells names 'ctl'.*there are batch_02"),
    ],
)
def test_names_that_no_held_out_cell_has_are_refused(tiny_corpus, changes, said):
    assert held_out(tiny_corpus).name == "cells"
    with pytest.raises(ValueError, match=said):
        all_held_out(tiny_corpus, dataclasses.replace(SETTINGS, **changes))


@pytest.mark.parametrize("known", [15, 16])
def test_as_few_cells_as_a_graph_has_neighbours_end_nothing(tiny_corpus, tmp_path, known):
    data = held_out(tiny_corpus, tasks=("batch_mixing", "confounds"))
    data.labels[known:] = ""
    x_NxD = np.random.default_rng(0).normal(size=(len(data.rows), 4))
    given = Representation(lambda _: x_NxD)
    rows = scores.rows_of_representation(given, data, pictures=tmp_path, name="random")
    assert all(row["value"] is not None for row in rows if row["task"] == "confounds")
    mixed = [row for row in rows if row["task"] == "batch_mixing"]
    if known == 15:
        assert {row["note"] for row in mixed} == {"15 cells have a label and a batch, 16 needed"}
        assert not list(tmp_path.iterdir())
    else:
        assert any(row["value"] is not None for row in mixed)
        assert [path.name for path in tmp_path.iterdir()] == ["umap-cells-random.png"]


def test_a_probe_that_does_not_converge_takes_no_other_score_with_it(tiny_corpus, monkeypatch):
    monkeypatch.setattr(cell_types, "LOGISTIC_ITERATIONS", 1)
    monkeypatch.setattr(noise, "ITERATIONS", 1)
    data = held_out(tiny_corpus, tasks=("cell_types", "confounds", "noise"))
    x_NxD = np.random.default_rng(0).normal(size=(len(data.rows), 4))
    given = Representation(lambda _: x_NxD, lambda counts, totals: x_NxD[: len(totals)])
    rows = scores.rows_of_representation(given, data)
    for row in rows:
        if row["task"] == "confounds":
            assert row["value"] is not None
        else:
            assert row["value"] is None and "did not converge" in row["note"]
    assert {row["task"] for row in rows} == {"cell_types", "confounds", "noise"}


def test_a_sample_without_a_condition_or_a_control_says_so(tiny_corpus):
    name = held_out(tiny_corpus).name
    given = Representation(lambda data: np.eye(len(data.rows)), lambda *counts: None)
    data = held_out(tiny_corpus, tasks=("perturbation",), stimulus={name: ("batch_02", "STIM")})
    beside = scores.rows_of_responses(data)
    rows = scores.rows_of_representation(given, data) + beside["no_change"]
    assert rows and all(row["value"] is None for row in rows)
    assert {row["note"] for row in rows} == {
        "control 'batch_02' and stimulated 'STIM' must be two of the conditions ['batch_02']"
    }
    data = held_out(tiny_corpus, tasks=("perturbation",), screens={name: "ctrl"})
    rows = scores.rows_of_responses(data)["no_change"]
    assert rows and all(row["value"] is None for row in rows)
    assert all("0 cells are of the control 'ctrl', 20 needed" in row["note"] for row in rows)


def test_intervals_of_masked_genes_are_drawn_with_the_evaluations_seed(tiny_corpus):
    params = step.initial_params(0, MODEL, len(tiny_corpus.vocabulary))
    mask = Settings.from_config(smoke.get_config()).run.masking.of_scores()
    asked = [held_out(tiny_corpus, tasks=("masked_genes",), seed=seed) for seed in (0, 1)]
    for of_seed in (
        [scores.rows_of_model(params, MODEL, mask, data) for data in asked],
        [
            scores.rows_of_floors(data, np.arange(50), MODEL.length, mask)["most_frequent"]
            for data in asked
        ],
    ):
        values, lows = ([[row[of] for row in rows] for rows in of_seed] for of in ("value", "low"))
        assert values[0] == values[1] and lows[0] != lows[1]


def test_a_label_for_each_cell_is_no_cell_type(tiny_corpus, recwarn):
    """A column of barcodes: no probe could have learnt them, and scikit-learn does not warn."""
    data = held_out(tiny_corpus, tasks=("cell_types",), baselines=("majority", "logistic"))
    halves = np.where(np.arange(len(data.ids)) % 2, "a", "b")
    data.labels, data.batches = data.ids, halves
    data.obs["cell_type"], data.obs["batch"] = data.ids, halves
    given = Representation(lambda _: np.random.default_rng(0).normal(size=(len(data.rows), 4)))
    rows = scores.rows_of_representation(given, data)
    rows += sum(scores.rows_of_classifiers(data.settings.baselines, data).values(), [])
    assert rows and all(row["value"] is None for row in rows)
    assert {row["note"] for row in rows} == {"25 cells of 25 types to fit on, 25 to test on"}
    assert not [str(said.message) for said in recwarn]
