"""Input encodings: values of genes from counts, what the encoder makes of them, all readers."""

import dataclasses

import anndata
import jax
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from test_build import SETTINGS, _write

from configs import smoke
from scaling.corpus import build, encodings, inspect, ranks
from scaling.corpus.encodings import Cells, arrange
from scaling.evaluate import decode, embed, in_silico, masked_genes, representations
from scaling.evaluate.classifier import Classifier
from scaling.evaluate.held_out import EvaluateSettings
from scaling.geneformer import runs
from scaling.pretrain import mam, masking, step
from scaling.pretrain.batches import Batches, cell_hashes
from scaling.pretrain.model import ModelSettings, RankEncoder
from scaling.pretrain.plan import Plan
from scaling.settings import Settings
from scaling.sweeps import jobs

MODEL = ModelSettings(2, 16, 2, 16, 12, "relu", 0.0, 1e-12)
WITH_VALUES = encodings.ENCODINGS[1:]
MASKS = masking.MaskingSettings(0.3, 0.8, 0.1, False)
V = 40


def model_of(encoding: str) -> ModelSettings:
    return dataclasses.replace(MODEL, encoding=encoding)


def some_cells(encoding: str, seed=0, n=5) -> Cells:
    """Cells of 4 to 12 genes, of random expression."""
    rng = np.random.default_rng(seed)
    genes = [2 + rng.permutation(V - 2)[: rng.integers(4, 13)] for _ in range(n)]
    expression = [rng.uniform(0.1, 5, len(of)).astype(np.float32) for of in genes]
    return arrange(encoding, genes, expression, 12)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    counts = np.random.default_rng(0).poisson(0.8, (40, V - 2)) + np.eye(40, V - 2, dtype=int)
    _write(folder / "cells.h5ad", counts)
    given = {"h5ad": str(folder / "cells.h5ad"), "gene_column": "symbol", "expression": True}
    return build.build(dataclasses.replace(SETTINGS, **given), folder / "corpus")


def test_expression_is_scanpys_in_the_order_of_the_tokens():
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(1.0, (20, 30)).astype(float))
    totals = np.asarray(counts.sum(1)).ravel() + 7  # some counts are of no gene of the vocabulary
    tokens, lengths = ranks.rank_tokens(counts, totals, rng.uniform(1, 9, 30), 4)
    found = np.split(ranks.expression(counts, totals, tokens, 4), np.cumsum(lengths)[:-1])
    data = anndata.AnnData(sp.hstack([counts, np.full((20, 1), 7.0)]).tocsr())
    sc.pp.normalize_total(data, target_sum=1e4)
    wanted = sc.pp.log1p(data, copy=True).X.toarray()
    for cell, of_cell, values in zip(np.split(tokens, np.cumsum(lengths)[:-1]), wanted, found,
                                     strict=True):  # fmt: skip
        np.testing.assert_allclose(values, of_cell[cell.astype(int) - 4], rtol=1e-6)


def test_bins_are_among_those_that_scgpt_draws_from():
    rng = np.random.default_rng(0)
    for values in (rng.uniform(1, 5, 2_000), rng.poisson(2.0, 500) + 1.0, np.ones(9), [2.0, 1.0]):
        found = encodings.bins(np.asarray(values))
        edges = np.quantile(values, np.linspace(0, 1, 50))
        # Its bins: between the numbers of edges below, and not above, each value.
        low, high = np.digitize(values, edges, right=True), np.digitize(values, edges)
        assert (found >= np.maximum(low, 1)).all() and (found <= high).all()
        for value in set(values):
            [same] = set(found[np.asarray(values) == value])
            assert (found[np.asarray(values) > value] >= same).all()
    even = encodings.bins(np.arange(1, 4_901.0))
    assert even[0] == 1 and even[-1] == 50 and set(np.bincount(even)[2:50]) <= {99, 100, 101}
    assert len(encodings.bins(np.empty(0))) == 0


def test_cells_are_cut_by_rank_whatever_the_encoding():
    tokens, expression = [np.array([9, 5, 7, 4])], [np.array([1.0, 4.0, 2.0, 3.0], np.float32)]
    asked = tokens, expression, 5, (2, 3)
    assert arrange("ranks", *asked).values_BxL is None
    by_rank = arrange("projection", *asked)
    assert by_rank.tokens_BxL.tolist() == [[2, 9, 5, 7, 3]]
    assert by_rank.values_BxL.tolist() == [[0, 1, 4, 2, 0]]
    in_order = arrange("counts", *asked)
    assert in_order.tokens_BxL.tolist() == [[2, 5, 7, 9, 3]]
    assert in_order.values_BxL.tolist() == [[0, 4, 2, 1, 0]]
    binned = arrange("bins", *asked)  # of the whole cell: the gene that is cut counts
    assert binned.values_BxL[0, 1:4].tolist() == encodings.bins(expression[0])[:3].tolist()
    assert binned.tokens_BxL.tolist() == by_rank.tokens_BxL.tolist()
    with pytest.raises(ValueError, match="model.encoding is 'words'; give one of"):
        arrange("words", *asked)
    with pytest.raises(ValueError, match="encoding=bins reads counts, and ready tokens have none"):
        arrange("bins", tokens, None, 5)


@pytest.mark.parametrize("encoding", encodings.ENCODINGS)
def test_only_ranks_tell_of_the_order_of_genes(encoding):
    params = step.initial_params(0, model_of(encoding), V)
    cells = some_cells(encoding, n=1)
    length = int((cells.tokens_BxL > 0).sum())
    order = np.r_[np.random.default_rng(0).permutation(length), np.arange(length, 12)]
    of_both = (
        embed.embed_cells(params, model_of(encoding), -1, [of], 2)
        for of in (cells, Cells(*(of if of is None else of[:, order] for of in cells)))
    )
    apart = np.abs(np.subtract(*of_both)).max()
    assert (apart > 1e-2) == (encoding == "ranks") and (apart > 1e-5) == (encoding == "ranks")


@pytest.mark.parametrize("encoding", WITH_VALUES)
def test_the_embedding_of_a_value_is_as_defined(encoding):
    params = jax.tree.map(np.asarray, step.initial_params(0, model_of(encoding), V))
    cells, p = some_cells(encoding), params["expression"]
    values = cells.values_BxL[..., None]
    if encoding == "bins":
        beside = p["bins"][cells.values_BxL.astype(int)]
        assert p["bins"].shape == (51, 16)
    elif encoding == "counts":
        beside = values * p["direction"]
    else:
        r = values * p["first"] + p["first_bias"]
        r = np.where(r > 0, r, 0.1 * r)
        weights = np.exp(r @ p["second"] + p["second_bias"] + r)
        beside = weights / weights.sum(-1, keepdims=True) @ p["mixed"]
        assert p["mixed"].shape == (100, 16)
    x = params["embedding"][cells.tokens_BxL] + beside + params["token_type"]
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    encoder, given = RankEncoder(model_of(encoding), V), {"params": params}
    found = encoder.apply(given, cells.tokens_BxL, None, cells.values_BxL, method="encode")[0]
    np.testing.assert_allclose(found, x, rtol=1e-3, atol=1e-4)
    assert "positions" not in params
    with pytest.raises(ValueError, match=f"model.encoding is '{encoding}'"):
        encoder.apply(given, cells.tokens_BxL, method="encode")
    with pytest.raises(ValueError, match="'ranks' reads no values"):
        given = {"params": step.initial_params(0, MODEL, V)}
        RankEncoder(MODEL, V).apply(given, cells.tokens_BxL, None, cells.values_BxL,
                                    method="encode")  # fmt: skip


def test_a_corpus_holds_the_expression_of_its_counts(corpus):
    rows = np.array([3, 17, 0, 3])
    counts, totals = corpus.counts(rows).toarray(), corpus.obs["total"].to_numpy()[rows]
    found = corpus.inputs(rows, 12, "projection")
    np.testing.assert_array_equal(found.tokens_BxL, corpus.tokens(rows, 12))
    for cell, values, of_genes, total in zip(*found, counts, totals, strict=True):
        real = cell > 0
        wanted = np.log1p(of_genes[cell[real] - 2] / total * 1e4)
        np.testing.assert_allclose(values[real], wanted, rtol=1e-6)
        assert not values[~real].any()


def test_a_corpus_without_expression_says_so_and_a_damaged_one_too(corpus, tiny_corpus, tmp_path):
    with pytest.raises(ValueError, match="has no expression beside its tokens.*data.expression"):
        tiny_corpus.inputs(np.arange(2), 12, "bins")
    assert inspect.verify(corpus.folder) == []
    path = corpus.folder / "expression-00000.float32"
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"abcd")
    try:
        assert "expression-00000.float32 is not the file that was built" in str(
            inspect.verify(corpus.folder)
        )
        path.write_bytes(content[:-4])
        with pytest.raises(ValueError, match=r"has \d+ bytes, \d+ were written"):
            type(corpus).open(corpus.folder).inputs(np.arange(2), 12, "bins")
    finally:
        path.write_bytes(content)


def batch_of(corpus, encoding: str, **masks) -> masking.MaskedCells:
    settings = dataclasses.replace(MASKS, **masks)
    rows = np.arange(len(corpus.obs))
    draw = settings, 0, None, encoding
    return Batches(corpus, rows, Plan(len(rows), 8, 0), 1, (12,), *draw)[0]


def run_of(encoding: str, strategy: str = "uniform", micro_batches: int = 1) -> step.RunSettings:
    config = smoke.get_config()
    config.model.update(layers=2, width=16, heads=2, feed_forward=16, length=12, dropout=0.0,
                        attention_dropout=0.0, encoding=encoding)  # fmt: skip
    config.model.latents = 8 * (strategy == "mam")
    config.masking.update(rate=0.3, strategy=strategy)
    config.devices.micro_batches = micro_batches
    return Settings.from_config(config).run


@pytest.mark.parametrize("encoding", WITH_VALUES)
def test_a_batch_has_the_values_of_its_cells(corpus, encoding):
    chosen, _ = Plan(len(corpus.obs), 8, 0).at(0)
    cells, wanted = batch_of(corpus, encoding), corpus.inputs(chosen, 12, encoding)
    np.testing.assert_array_equal(cells.values_BxL, wanted.values_BxL)
    assert len(np.unique(wanted.values_BxL, axis=0)) > 4
    seen = cells.inputs_BxL == wanted.tokens_BxL
    assert 0.6 < seen.mean() < 1  # the same cells, some of their genes masked


@pytest.mark.parametrize(("encoding", "strategy"), [
    ("bins", "uniform"), ("projection", "uniform"), ("counts", "uniform"), ("bins", "mam")
])  # fmt: skip
def test_training_reads_the_values_of_each_cell(corpus, encoding, strategy):
    run = run_of(encoding, strategy)
    cells, tokens = batch_of(corpus, encoding, strategy=strategy), len(corpus.vocabulary)
    other = cells._replace(values_BxL=cells.values_BxL[::-1].copy())

    def trained(cells, run=run):
        state = step.initial_state(np.uint32(0), run.program(), 5, tokens)
        state = state.replace(params=jax.tree.map(lambda leaf: leaf * 4, state.params))
        return step.train_step(state, cells, np.uint32(0), run.program(), 5)

    state, logged = trained(cells)
    assert abs(logged["loss"] - trained(other)[1]["loss"]) > 1e-3
    before = step.initial_params(0, run.model, tokens)["expression"]
    before = jax.tree.map(lambda leaf: leaf * 4, before)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params["expression"],
                         before)  # fmt: skip
    assert min(jax.tree.leaves(moved)) > 0
    parts = trained(cells, run_of(encoding, strategy, micro_batches=2))[0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5),
        parts.params["expression"], state.params["expression"],
    )  # fmt: skip
    if strategy == "uniform":
        params = jax.tree.map(
            lambda leaf: leaf * 4, step.initial_params(0, run.model, tokens)
        )
        losses = [step.held_out_sums(params, of, run.program()) for of in (cells, other)]
        assert abs(losses[0].cross_entropy - losses[1].cross_entropy) > 1e-4


def test_mams_draw_depends_on_values(corpus):
    run = run_of("bins", "mam")
    params = step.initial_params(0, run.model, len(corpus.vocabulary))
    params = jax.tree.map(lambda leaf: leaf * 8, params)
    cells = batch_of(corpus, "bins", strategy="mam")
    encoder = RankEncoder(run.model, len(corpus.vocabulary))
    weights = [
        encoder.apply({"params": params}, cells.inputs_BxL, values, method="attention_of_latents")
        for values in (cells.values_BxL, cells.values_BxL[::-1])
    ]
    assert np.abs(weights[0] - weights[1]).max() > 1e-4
    masked = mam.mask(cells, weights[0], len(corpus.vocabulary), run.masking)
    np.testing.assert_array_equal(masked.values_BxL, cells.values_BxL)


@pytest.mark.parametrize("encoding", WITH_VALUES)
def test_every_score_reads_the_encoding(corpus, encoding):
    """Of cells of a corpus and of their counts alone: embeddings, masked genes, classes."""
    model, words = model_of(encoding), corpus.vocabulary
    params = step.initial_params(0, model, len(words))
    rows = np.arange(9)
    cells = corpus.inputs(rows, 12, encoding)
    found = embed.embed_corpus(params, model, -1, corpus, rows)
    np.testing.assert_array_equal(found, embed.embed_cells(params, model, -1, [cells], 2))
    settings = EvaluateSettings(layer=-1, cells=9, no_batch_mixing=(), seed=0, pool="genes",
                                tasks=("masked_genes",), baselines=(), stimulus={}, screens={},
                                gene_names="", ontology="", ontology_labels="", gene_labels={},
                                gene_sets="")  # fmt: skip
    of_model = representations.of_model(params, model, settings, corpus)
    counts, totals = corpus.counts(rows), corpus.obs["total"].to_numpy()[rows]
    np.testing.assert_allclose(of_model.of_counts(counts, totals), found, atol=1e-6)
    twice = of_model.of_counts(counts, totals * 2)  # the same genes at half the expression
    assert (np.abs(twice - found).max() > 1e-4) == (encoding != "bins")
    module = Classifier(model, len(words), 2, 3, "mean", 0.0)
    head = module.init(jax.random.key(0), cells)
    other = Cells(cells.tokens_BxL, cells.values_BxL[::-1])
    assert np.abs(module.apply(head, cells) - module.apply(head, other)).max() > 1e-5
    scored = masked_genes.score_model(params, model, MASKS, corpus, rows)
    [loss] = [row["value"] for row in scored if row["score"] == "loss"
              and (row["positions"], row["read_from"]) == ("selected", "P")]  # fmt: skip
    run = dataclasses.replace(run_of(encoding), model=model, masking=MASKS)
    masked = masking.mask_cells(
        cells.tokens_BxL, masking.HELD_OUT_SEED, np.zeros(9, int),
        cell_hashes(corpus.obs["cell_id"].to_numpy()[rows]), len(words), MASKS, 2,
    )._replace(values_BxL=cells.values_BxL)  # fmt: skip
    run = dataclasses.replace(run, objective=dataclasses.replace(run.objective, name="mlm"))
    sums = step.held_out_sums(params, masked, run.program())
    assert loss == pytest.approx(float(sums.cross_entropy / sums.positions), rel=1e-5)


@pytest.mark.parametrize("encoding", WITH_VALUES)
def test_genes_are_perturbed_and_filled_in_with_their_values(encoding):
    model = model_of(encoding)
    params = step.initial_params(0, model, V)
    genes, expression = [np.array([9, 5, 7])], [np.array([1.0, 4.0, 2.0], np.float32)]
    cells = arrange(encoding, genes, expression, 12)
    value = dict(zip(cells.tokens_BxL[0].tolist(), cells.values_BxL[0].tolist(), strict=True))

    def by_hand(*left) -> float:
        after = np.zeros((2, 1, 12), np.float32)
        after[:, 0, : len(left)] = np.array(left).T
        changed = Cells(after[0].astype(np.int32), after[1])
        a, b = (embed.embed_cells(params, model, -1, [of], 2)[0] for of in (cells, changed))
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    [[found]] = in_silico.shifts(params, model, -1, cells, 2, [5], "delete")
    assert found == pytest.approx(by_hand((7, value[7]), (9, value[9])), rel=1e-3, abs=1e-6)
    [[found]] = in_silico.shifts(params, model, -1, cells, 2, [9], "overexpress")
    wanted = by_hand((5, value[5]), (7, value[7]), (9, max(value.values())))
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-6) and found > 2e-6
    full = some_cells(encoding, n=30)
    full = full.at([len(set(of)) == 12 and 0 not in of for of in full.tokens_BxL.tolist()]).at([0])
    new = next(gene for gene in range(2, V) if gene not in full.tokens_BxL)
    out = in_silico._first(full.at(0), new, 2)[0][12]
    assert full.values_BxL[0, full.tokens_BxL[0] == out] == full.values_BxL.min()
    hidden = cells._replace(tokens_BxL=np.where(cells.tokens_BxL == 7, 1, cells.tokens_BxL))
    put = decode.fill(params, model, hidden, 2)
    encoder, at = RankEncoder(model, V), np.argwhere(hidden.tokens_BxL == 1)[:, 1:]
    states = encoder.apply({"params": params}, hidden.tokens_BxL, at, None, hidden.values_BxL)
    logits = np.array(states[0, 0] @ params["embedding"].T + params["bias"])
    logits[[0, 1, 5, 9]] = -np.inf
    assert put[0, at[0, 0]] == logits.argmax()


def test_encodings_are_an_axis_and_the_corpus_keeps_what_they_read():
    config = smoke.get_config()
    assert not Settings.from_config(config).data.expression
    config.study.encodings = ("ranks", "bins", "counts")
    settings = Settings.from_config(config)
    assert settings.data.expression
    found = jobs.plan(settings)
    trained = [job for job in found if job.steps]
    assert {job.encoding for job in trained} == {"ranks", "bins", "counts"}
    assert {jobs.run_settings(settings, job).model.encoding for job in trained} == {
        "ranks", "bins", "counts"
    }  # fmt: skip
    untrained = [job for job in found if job.model == jobs.UNTRAINED]
    assert {jobs.run_settings(settings, job).model.encoding for job in untrained} == {
        "ranks", "bins", "counts"
    }  # fmt: skip
    assert len({job.name for job in found}) == len(found)
    config.study.encodings, config.model.encoding = (), "projection"
    assert Settings.from_config(config).data.expression


@pytest.mark.parametrize(("change", "told"), [
    ({"model.encoding": "words"}, "model.encoding 'words'; one of"),
    ({"study.encodings": ("ranks", "words")}, r"study.encodings has \['words'\]"),
    ({"model.encoding": "counts", "masking.strategy": "band"}, "masking.strategy=band masks by"),
])  # fmt: skip
def test_what_cannot_be_read_is_refused(change, told):
    config = smoke.get_config()
    config.update_from_flattened_dict(change)
    with pytest.raises(ValueError, match=told):
        jobs.plan(Settings.from_config(config))


def test_a_run_of_another_encoding_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "encoder", lambda given: ({}, model_of("bins"), None))
    with pytest.raises(ValueError, match="model.encoding=bins and model.latents=0"):
        runs.of_run(tmp_path)
