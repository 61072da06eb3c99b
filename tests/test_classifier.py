"""The classifier's training: what moves, at which rate, on which devices, and what padding does."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from configs import finetune_cell_types, finetune_disease, finetune_dosage
from scaling.corpus.encodings import Cells
from scaling.corpus.tokens import PAD
from scaling.evaluate import classifier, embed, tuning
from scaling.evaluate.classifier import Classifier, Labelled
from scaling.evaluate.tuning import FinetuneSettings
from scaling.pretrain import attention
from scaling.pretrain.model import ModelSettings
from scaling.pretrain.step import initial_params

MODEL = ModelSettings(
    layers=2, width=12, heads=3, feed_forward=16, length=128, activation="relu", dropout=0.1,
    norm_epsilon=1e-12, attention_dropout=0.1,
)
PUBLISHED = FinetuneSettings.from_config(finetune_cell_types.get_config().to_dict())
SETTINGS = dataclasses.replace(
    PUBLISHED, learning_rate=1e-2, warmup=2, epochs=0.6, batch=12, buckets=2, weight_decay=0.1
)


def of_config(config, **changes) -> FinetuneSettings:
    return dataclasses.replace(FinetuneSettings.from_config(config.to_dict()), **changes)


@pytest.mark.parametrize(
    ("config", "steps", "rates"),
    [
        (finetune_cell_types, 1_500, {0: 0, 250: 2.5e-5, 500: 5e-5, 1_000: 2.5e-5, 1_500: 0}),
        (finetune_disease, 3_812, {906: 4.02e-4, 1_812: 8.04e-4, 2_812: 4.0205e-4, 3_812: 1e-7}),
        (finetune_dosage, 667, {100: 1e-5, 500: 5e-5, 667: 0}),
    ],
)
def test_rates_are_the_published_ones(config, steps, rates):
    rate = tuning.schedule(of_config(config.get_config()), steps)
    for step, wanted in rates.items():
        assert float(rate(step)) == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_a_power_bends_the_decay_and_a_share_is_of_the_steps():
    settings = of_config(
        finetune_cell_types.get_config(), warmup=0.2, decay_power=2.0, end_rate=1e-5
    )
    rate = tuning.schedule(settings, 100)
    assert float(rate(10)) == pytest.approx(2.5e-5)
    assert float(rate(60)) == pytest.approx(1e-5 + 4e-5 * 0.25)
    assert float(rate(100)) == pytest.approx(1e-5)


def test_steps_are_epochs_of_batches_and_more_than_the_warm_up():
    disease = of_config(finetune_disease.get_config())
    assert disease.steps(100_000) == 7_500
    with pytest.raises(ValueError, match=r"warmup is 1812 steps, and 0.9 epochs of 100 cells ha"):
        disease.steps(100)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "gene"}, "task is 'gene'; there are cells, genes"),
        ({"pooling": "none"}, "pooling is 'none'; there are mean, first"),
        ({"start": "random"}, "there are pretrained, untrained"),
        ({"split": "batch"}, "there are cell, donor"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"end_rate": 5e-5}, "end_rate"),
        ({"warmup": 1.5}, "warmup"),
        ({"decay_power": 0.0}, "decay_power"),
        ({"test_share": 1.0}, "test_share"),
        ({"min_share": 1.0}, "min_share"),
        ({"folds": 1}, "folds is 1"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
        ({"gene_classes": "genes.csv"}, "gene_classes is 'genes.csv'"),
        ({"task": "genes", "pooling": "none"}, "gene_classes is ''"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PUBLISHED, **changes)


def test_a_config_without_the_part_is_refused():
    with pytest.raises(ValueError, match="no part 'finetune'"):
        FinetuneSettings.from_config({"model": {}})


def module_of(corpus, pooling="mean", classes=4, model=MODEL):
    genes = corpus.vocabulary
    return Classifier(model, len(genes), len(genes.special), classes, pooling, 0.1)


def cells_of(corpus) -> Labelled:
    rows = np.flatnonzero(corpus.obs["split"] == "pool")
    _, numbers = np.unique(corpus.obs["cell_type"].to_numpy(str)[rows], return_inverse=True)
    return Labelled(corpus, rows, numbers)


@functools.cache
def encoder(vocabulary: int) -> dict:
    return initial_params(7, MODEL, vocabulary)


def trained(corpus, settings=SETTINGS, devices=None, pooling="mean"):
    of_corpus = encoder(len(corpus.vocabulary)), module_of(corpus, pooling)
    return classifier.train(*of_corpus, settings, cells_of(corpus), devices)


def assert_bits(found, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found, wanted)


@pytest.mark.parametrize("pooling", ["mean", pytest.param("first", marks=pytest.mark.slow)])
def test_frozen_parameters_stay_to_the_bit_and_all_others_move(tiny_corpus, pooling):
    settings = dataclasses.replace(SETTINGS, frozen_layers=1, frozen_embedding=True)
    params, losses = trained(tiny_corpus, settings, pooling=pooling)
    before = encoder(len(tiny_corpus.vocabulary))
    still = {"embedding", "positions", "token_type", "norm", "layer_0", "bias"}
    assert set(params["encoder"]) == still | {"layer_1"} and len(losses) > 3
    assert_bits({name: params["encoder"][name] for name in still},
                {name: before[name] for name in still})  # fmt: skip
    moved = jax.tree.map(lambda a, b: (a != b).any(), params["encoder"]["layer_1"],
                         before["layer_1"])  # fmt: skip
    assert all(jax.tree.leaves(moved))
    assert ("pooler" in params) == (pooling == "first")


@pytest.mark.slow
def test_frozen_layers_alone_leave_the_embedding_to_move(tiny_corpus):
    settings = dataclasses.replace(SETTINGS, frozen_layers=2)
    params, _ = trained(tiny_corpus, settings)
    before = encoder(len(tiny_corpus.vocabulary))
    for name, leaf in before.items():
        if name.startswith("layer_") or name == "bias":
            assert_bits(params["encoder"][name], leaf)
    assert (params["encoder"]["embedding"] != before["embedding"]).any()
    with pytest.raises(ValueError, match="frozen_layers is 3, and the run's model has 2 layers"):
        trained(tiny_corpus, dataclasses.replace(SETTINGS, frozen_layers=3))


def test_an_epoch_reads_every_cell_whole_with_its_label(tiny_corpus, monkeypatch):
    cells, read = cells_of(tiny_corpus), []

    def step(moving, moments, still, batch, *rest):
        read.append([np.asarray(array) for array in (batch[0].tokens_BxL, batch[1])])
        return moving, moments, 0.0

    monkeypatch.setattr(classifier, "_step", step)
    trained(tiny_corpus, dataclasses.replace(SETTINGS, epochs=1.0, batch=1))
    whole = tiny_corpus.tokens(cells.rows, MODEL.length)
    wanted = {(*cell[cell > 0],): label for cell, label in zip(whole, cells.classes, strict=True)}
    found, lengths = {}, set()
    for tokens_BxL, labels_B in read:
        (real,) = np.flatnonzero(labels_B >= 0)
        assert not np.delete(tokens_BxL, real, axis=0).any()
        lengths.add(tokens_BxL.shape[1])
        found[(*tokens_BxL[real][tokens_BxL[real] > 0],)] = labels_B[real]
    assert found == wanted
    assert len(lengths) == 2 and len(read) == len(cells.rows)


def test_only_matrices_decay():
    settings = dataclasses.replace(SETTINGS, weight_decay=0.5, warmup=0.0, clip=1.0)
    shapes = {("dense", "kernel"): (2, 2), ("dense", "bias"): (2,), ("query", "bias"): (2, 2)}
    params = {path: np.ones(shape, np.float32) for path, shape in shapes.items()}
    adamw = tuning.optimizer(settings, 10)
    grads = jax.tree.map(np.zeros_like, params)
    update, _ = adamw.update(grads, adamw.init(params), params)
    for path, leaf in update.items():
        np.testing.assert_allclose(leaf, -1e-2 * 0.5 * (path == ("dense", "kernel")), rtol=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny_corpus):
    one, other = trained(tiny_corpus), trained(tiny_corpus)
    assert_bits(one, other)
    third, _ = trained(tiny_corpus, dataclasses.replace(SETTINGS, seed=1))
    assert (one[0]["logits"]["kernel"] != third["logits"]["kernel"]).any()


@pytest.mark.slow
def test_dropout_is_drawn_anew_at_each_step(tiny_corpus):
    cells = Labelled(tiny_corpus, np.full(8, 5), np.zeros(8, int))  # one cell, in any order
    still = dataclasses.replace(MODEL, dropout=0.0, attention_dropout=0.0)
    settings = dataclasses.replace(  # every step sees the same, and nothing moves
        SETTINGS, learning_rate=1e-12, epochs=3.0, batch=8, warmup=0.0, buckets=1
    )
    of_corpus = encoder(len(tiny_corpus.vocabulary))
    for dropout, apart in ((0.0, False), (0.5, True)):
        module = dataclasses.replace(module_of(tiny_corpus, model=still), dropout=dropout)
        _, losses = classifier.train(of_corpus, module, settings, cells)
        assert len(losses) == 3 and (np.ptp(losses) > 1e-4) == apart


@pytest.mark.slow
def test_eight_devices_train_as_one_does(tiny_corpus):
    """Twelve cells on eight devices: a place is a cell's own whatever the padding."""
    assert len(jax.devices()) == 8
    whole, losses = trained(tiny_corpus)
    alone, wanted = trained(tiny_corpus, devices=jax.devices()[:1])
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-3)
    jax.tree.map(close, whole, alone)


@pytest.mark.slow
def test_logits_are_the_same_on_any_devices_and_at_any_length(tiny_corpus):
    params, _ = trained(tiny_corpus)
    rows, module = np.arange(70), module_of(tiny_corpus)
    assert len(set(tiny_corpus.lengths(rows).clip(max=MODEL.length))) > 5
    found = []
    for buckets, devices in ((3, None), (1, jax.devices()[:1])):
        each = np.full((70, 4), np.nan)
        asked = params, module, tiny_corpus, rows, buckets, devices
        for places, tokens, logits in classifier.logits(*asked):
            np.testing.assert_array_equal(
                tokens, tiny_corpus.tokens(rows[places], tokens.shape[1])
            )
            each[places] = logits
        found.append(each)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_logits_are_read_from_the_mean_that_embeds_cells(tiny_corpus):
    params, _ = trained(tiny_corpus)
    rows, module, before = np.arange(5), module_of(tiny_corpus), params["logits"]
    head = {name: leaf for name, leaf in encoder(len(tiny_corpus.vocabulary)).items()
            if name not in params["encoder"]}  # fmt: skip
    embedded = embed.embed_corpus({**head, **params["encoder"]}, MODEL, -1, tiny_corpus, rows)
    ((places, _, found),) = classifier.logits(params, module, tiny_corpus, rows, 1)
    wanted = embedded @ np.asarray(before["kernel"]) + np.asarray(before["bias"])
    np.testing.assert_allclose(found, wanted[places], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_is_told(tiny_corpus):
    broken = {**encoder(len(tiny_corpus.vocabulary))}
    broken["token_type"] = np.full_like(broken["token_type"], np.nan)
    with pytest.raises(FloatingPointError, match="loss of step 0 of"):
        classifier.train(broken, module_of(tiny_corpus), SETTINGS, cells_of(tiny_corpus))


@pytest.mark.parametrize("pooling", ["mean", "first", "none"])
def test_padding_and_empty_cells_change_no_gradient(monkeypatch, pooling):
    monkeypatch.setattr(attention, "QUERIES", 16)
    vocabulary, rng = 60, np.random.default_rng(0)
    still = dataclasses.replace(MODEL, dropout=0.0, attention_dropout=0.0)
    module = Classifier(still, vocabulary, 2, 3, pooling, 0.0)
    tokens = np.stack([rng.permutation(np.arange(2, 60))[:24] for _ in range(2)]).astype(np.int32)
    tokens[1, 20:] = PAD
    labels = np.array([2, 0])
    if pooling == "none":
        labels = np.where(tokens % 3 == 0, tokens % 2, -1)
    padded = np.pad(tokens, [(0, 2), (0, 30)])
    more = np.pad(labels, [(0, 2)] + [(0, 30)] * (pooling == "none"), constant_values=-1)
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda x: np.float64(x) + 0.3 * rng.normal(size=x.shape),
            module.init(jax.random.key(0), Cells(tokens))["params"],
        )

        def loss(params, tokens, labels):
            return classifier.cross_entropy(module.apply({"params": params}, Cells(tokens)), labels)

        gradient = jax.jit(jax.value_and_grad(loss))
        wanted, found = gradient(params, tokens, labels), gradient(params, padded, more)
    assert np.linalg.norm(wanted[1]["encoder"]["embedding"]) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9, 1e-10), found, wanted)


def test_cross_entropy_is_the_mean_over_what_has_a_label():
    logits, labels = np.array([[2.0, 0.0], [1.0, 1.0], [0.0, 5.0]]), np.array([0, 1, -1])
    wanted = (np.log1p(np.exp(-2)) + np.log(2)) / 2
    assert float(classifier.cross_entropy(logits, labels)) == pytest.approx(wanted)
    assert float(classifier.cross_entropy(logits, -np.ones(3, int))) == 0.0
