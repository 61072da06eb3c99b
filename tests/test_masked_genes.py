"""Masked-gene scores against a literal count, cell by cell, over a last batch that is not full."""

import jax
import numpy as np
import pytest

from kernels.cab import cab_loss
from scaling.corpus import build, simulate
from scaling.evaluate import masked_genes
from scaling.pretrain import masking, step
from scaling.pretrain.batches import cell_hashes
from scaling.pretrain.model import ModelSettings, RankEncoder
from scaling.settings import Settings

MODEL = ModelSettings(1, 16, 2, 32, 48, "relu", 0.0, 1e-12)
MASK = masking.MaskingSettings(0.15, 0.8, 0.1, False)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    from configs import smoke

    folder = tmp_path_factory.mktemp("corpus")
    simulate.simulate(folder / "cells.h5ad", simulate.Simulation(cells=160, genes=120, depth=150.0))
    data = Settings.from_config(smoke.get_config()).data
    settings = build.dataclasses.replace(data, h5ad=str(folder / "cells.h5ad"))
    return build.build(settings, folder / "corpus")


@pytest.fixture(scope="module")
def params(corpus):
    params = step.initial_params(0, MODEL, len(corpus.vocabulary))
    # Far from uniform, so that predictions differ between cells and repeat within them.
    params["bias"] = jax.random.normal(jax.random.key(1), params["bias"].shape)
    params["embedding"] = 10 * params["embedding"]
    return params


def masked_cells(corpus, rows):
    cell = cell_hashes(corpus.obs["cell_id"].to_numpy()[rows])
    draw = masking.HELD_OUT_SEED, np.zeros(len(rows), np.int32), cell
    tokens, genes = corpus.tokens(rows, MODEL.length), len(corpus.vocabulary)
    cells = masking.mask_cells(tokens, *draw, genes, MASK)
    return cells, np.asarray(masking.known_genes(cells, genes))


def literal(top, cells, known, counted):
    """Means over cells of the metrics, counted gene by gene."""
    found = {k: [] for k in ("accuracy", "repeat_unmasked", "repeat_masked", "uniqueness")}
    for b in range(len(top)):
        at = [m for m in range(top.shape[1]) if counted[b, m]]
        if not at:
            continue
        genes = [int(top[b, m]) for m in at]
        found["accuracy"].append(np.mean(np.array(genes) == cells.labels_BxM[b, at]))
        found["repeat_unmasked"].append(np.mean([bool(known[b, g]) for g in genes]))
        repeats = sum(genes.count(g) - 1 for g in set(genes))
        found["repeat_masked"].append(repeats / len(genes))
        found["uniqueness"].append(sum(genes.count(g) == 1 for g in set(genes)) / len(genes))
    return {k: np.mean(v) for k, v in found.items()}


def by_name(rows, positions, read_from):
    wanted = [r for r in rows if (r["positions"], r["read_from"]) == (positions, read_from)]
    return {r["score"]: r["value"] for r in wanted}


def test_scores_equal_a_literal_count(corpus, params):
    rows = np.arange(70)  # one full batch and six cells of the next
    scored = masked_genes.score_model(params, MODEL, MASK, corpus, rows)
    cells, known = masked_cells(corpus, rows)
    encoder = RankEncoder(MODEL, len(corpus.vocabulary))
    hidden = encoder.apply({"params": params}, cells.inputs_BxL, cells.slots_BxM)
    arrays = hidden, params["embedding"], params["bias"], cells.labels_BxM, known
    out = cab_loss(*arrays, similarity="none", implementation="reference")
    plain = cab_loss(*arrays, variant="plain", similarity="none", implementation="reference")
    counted = {"mask": cells.hidden_BxM, "selected": cells.labels_BxM >= 0}
    for reading, top in (("P", out.top_p_BxM), ("Q", out.top_q_BxM)):
        for kind, of_kind in counted.items():
            found = by_name(scored, kind, reading)
            expected = literal(np.asarray(top), cells, known, of_kind)
            assert {k: found[k] for k in expected} == pytest.approx(expected, abs=1e-6)
            assert found["repeat"] == pytest.approx(
                expected["repeat_masked"] + expected["repeat_unmasked"], abs=1e-6
            )
            predicted = np.asarray(top)[of_kind]
            true = cells.labels_BxM[of_kind]
            assert found["coverage"] == len(set(predicted)) / len(set(true))
            entropy = [
                -sum(p * np.log(p) for p in np.bincount(x)[np.bincount(x) > 0] / len(x))
                for x in (predicted, true)
            ]
            assert found["entropy_ratio"] == pytest.approx(entropy[0] / entropy[1])
    positions = counted["selected"].sum()
    loss_q = by_name(scored, "selected", "Q")["loss"]
    loss_p = by_name(scored, "selected", "P")["loss"]
    assert loss_q == pytest.approx(float(out.cross_entropy) / positions, rel=1e-5)
    assert loss_p == pytest.approx(float(plain.cross_entropy) / positions, rel=1e-5)
    assert "loss" not in by_name(scored, "mask", "Q")


def test_floors_are_what_they_say(corpus):
    rows = np.arange(70)
    frequency = masked_genes.token_frequency(corpus, np.arange(70, 150), MODEL.length)
    tokens = corpus.tokens(np.arange(70, 150), MODEL.length)
    assert frequency[7] == sum(7 in set(cell) for cell in tokens.tolist())
    found = masked_genes.score_floors(frequency, MODEL.length, MASK, corpus, rows)
    cells, known = masked_cells(corpus, rows)
    hidden, labels = cells.hidden_BxM, cells.labels_BxM
    hits = []
    for b in range(70):
        gene = next(g for g in np.argsort(-frequency, kind="stable") if not known[b, g])
        if hidden[b].any():
            hits.append((labels[b, hidden[b]] == gene).mean())
    frequent = by_name(found["most_frequent"], "mask", None)
    assert frequent["accuracy"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert frequent["repeat_unmasked"] == 0.0
    copied = by_name(found["copy_input"], "selected", None)
    inputs = np.take_along_axis(cells.inputs_BxL, cells.slots_BxM, 1)
    kept = [(inputs[b] == labels[b])[labels[b] >= 0] for b in range(70)]
    expected = np.mean([k.mean() for k in kept if len(k)])
    assert copied["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert by_name(found["copy_input"], "mask", None)["accuracy"] == 0.0


def test_held_out_masks_are_the_same_for_every_model(corpus, params):
    rows = np.arange(30)
    one = masked_genes.score_model(params, MODEL, MASK, corpus, rows)
    assert one == masked_genes.score_model(params, MODEL, MASK, corpus, rows)
    other = {**params, "bias": params["bias"] * 0}
    counted = [r["n"] for r in masked_genes.score_model(other, MODEL, MASK, corpus, rows)]
    assert counted == [r["n"] for r in one]
