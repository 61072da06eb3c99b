"""MAM: positions drawn where latents attend, a cell's own draws, what the latents learn from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import smoke
from scaling.corpus.tokens import MASK, PAD
from scaling.pretrain import mam, masking, step
from scaling.pretrain.model import RankEncoder
from scaling.settings import Settings

B, L, V, H, Z = 400, 24, 60, 2, 6
MAM = masking.MaskingSettings(0.25, 0.8, 0.1, False, strategy="mam")


def unmasked(seed=0, epoch=0, size=B, length=L, special=2, settings=MAM) -> masking.MaskedCells:
    rng = np.random.default_rng(0)
    tokens = np.zeros((size, length), np.int32)
    for b in range(size):
        genes = rng.integers(L // 2, L + 1)
        tokens[b, :genes] = rng.permutation(np.arange(special, V))[:genes]
    draws = seed, np.full(size, epoch), np.arange(size, dtype=np.uint32)
    return masking.mask_cells(tokens, *draws, V, settings, special)


def attention(cells, weight_L=None) -> np.ndarray:
    """Weights of latents: the same for all, or every latent at a place of its own."""
    size, length = cells.inputs_BxL.shape
    weight_L = np.ones(length) if weight_L is None else weight_L[:length]
    weights = np.broadcast_to(weight_L, (size, H, Z, length)) * (cells.inputs_BxL != PAD)[
        :, None, None
    ]
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def drawn(cells, weights=None, settings=MAM) -> masking.MaskedCells:
    weights = attention(cells) if weights is None else weights
    return jax.device_get(jax.jit(mam.mask, static_argnums=(2, 3))(cells, weights, V, settings))


def selected_of(cells) -> np.ndarray:
    selected = np.zeros(cells.inputs_BxL.shape, bool)
    for b, m in np.argwhere(cells.labels_BxM >= 0):
        selected[b, cells.slots_BxM[b, m]] = True
    return selected


def test_each_cell_has_its_share_masked_in_rank_order_and_treated_as_bert_does():
    cells = unmasked()
    assert (cells.labels_BxM == -1).all() and not cells.slots_BxM.any()
    found = drawn(cells)
    real, selected = cells.inputs_BxL != PAD, selected_of(found)
    np.testing.assert_array_equal(selected.sum(1), np.round(0.25 * real.sum(1)))
    np.testing.assert_array_equal(found.inputs_BxL[~selected], cells.inputs_BxL[~selected])
    filled = found.labels_BxM >= 0
    at_slots = np.take_along_axis(cells.inputs_BxL, found.slots_BxM, axis=1)
    np.testing.assert_array_equal(found.labels_BxM[filled], at_slots[filled])
    for slots, some in zip(found.slots_BxM, filled, strict=True):
        assert (np.diff(slots[some]) > 0).all() and not slots[~some].any()
    seen = np.take_along_axis(found.inputs_BxL, found.slots_BxM, axis=1)
    np.testing.assert_array_equal(found.hidden_BxM, filled & (seen == MASK))
    assert stats.binomtest(int(found.hidden_BxM.sum()), int(filled.sum()), 0.8).pvalue > 1e-6
    other = filled & (seen != MASK) & (seen != found.labels_BxM)
    share = 0.1 * (1 - 1 / (V - 2))
    assert stats.binomtest(int(other.sum()), int(filled.sum()), share).pvalue > 1e-6
    assert [a.dtype for a in found[:5]] == [a.dtype for a in cells[:5]] and found.later is None


def test_even_weights_mask_evenly_and_others_where_they_lie():
    cells = unmasked()
    full = cells.inputs_BxL[:, : L // 2] != PAD
    assert full.all()
    even = selected_of(drawn(cells))[:, : L // 2].sum(0)
    assert stats.chisquare(even).pvalue > 1e-6
    one = dataclasses.replace(MAM, rate=0.045)  # one of 12 to 24 genes
    weight = np.arange(1.0, L + 1)
    first = unmasked(settings=one)
    chosen = selected_of(drawn(first, attention(first, weight), one))
    assert (chosen.sum(1) == 1).all()
    share = attention(first, weight)[:, 0, 0].sum(0, dtype=np.float64)
    share *= B / share.sum()
    assert stats.chisquare(chosen.sum(0)[:12], share[:12] * chosen[:, :12].sum() / share[:12].sum()
                           ).pvalue > 1e-6  # fmt: skip
    assert stats.chisquare([chosen[:, :12].sum(), chosen[:, 12:].sum()],
                           [share[:12].sum(), share[12:].sum()]).pvalue > 1e-6  # fmt: skip


def test_half_of_the_latents_choose():
    cells = unmasked()
    weights = np.zeros((B, H, Z, L), np.float32)
    weights[:, :, np.arange(Z), np.arange(Z)] = 1  # latent z sees position z alone
    chosen = selected_of(drawn(cells, weights))
    assert not chosen[:, Z:].any() and chosen.sum(1).max() == Z // mam.SUBSET
    assert stats.chisquare(chosen.sum(0)[:Z]).pvalue > 1e-6


def test_draws_are_a_cells_own():
    cells = unmasked()
    found = drawn(cells)
    few = drawn(jax.tree.map(lambda a: a[7:9], cells), attention(cells)[7:9])
    np.testing.assert_array_equal(few.inputs_BxL, found.inputs_BxL[7:9])
    for other in (unmasked(seed=1), unmasked(epoch=1)):
        assert (drawn(other).inputs_BxL != found.inputs_BxL).any(1).mean() > 0.9


def test_what_stands_around_a_cell_is_never_masked():
    cells = unmasked(special=4)
    cells.inputs_BxL[:, 0] = 2
    cells.later.free_BxL[:, 0] = False
    found = drawn(cells)
    assert (found.inputs_BxL[:, 0] == 2).all() and found.inputs_BxL[cells.later.free_BxL].min() >= 1
    always = dataclasses.replace(MAM, mask_share=0.0, random_share=1.0)
    found = drawn(cells, settings=always)
    assert found.inputs_BxL[selected_of(found)].min() >= 4


def settings_of(**model):
    run = Settings.from_config(smoke.get_config()).run
    shape = {"layers": 1, "width": 8, "heads": 2, "feed_forward": 8, "length": L, "dropout": 0.0}
    shape |= {"attention_dropout": 0.0, "latents": Z} | model
    return dataclasses.replace(
        run, model=dataclasses.replace(run.model, **shape), masking=MAM,
        train=dataclasses.replace(run.train, learning_rate=1e-2, warmup=0.0, weight_decay=0.0),
    )  # fmt: skip


def after_a_step(run, size=8):
    cells, program = unmasked(size=size), run.program()
    state = step.initial_state(0, program, 10, V)
    before = jax.device_get(state.params)
    state, logged = step.train_step(state, cells, 0, program, 10)
    return before, jax.device_get(state.params), jax.device_get(logged)


def test_the_latents_learn_from_the_penalty_alone_unless_asked(monkeypatch):
    for learn, penalty, moved in ((False, 1e-5, True), (False, 0.0, False), (True, 0.0, True)):
        monkeypatch.setattr(mam, "PENALTY", penalty)
        jax.clear_caches()
        before, after, logged = after_a_step(settings_of(latents_learn=learn))
        assert logged["sums"].positions > 0
        changed = np.abs(after["mam"]["latents"] - before["mam"]["latents"]).max() > 0
        assert changed == moved, (learn, penalty)
        assert np.abs(after["embedding"] - before["embedding"]).max() > 0
    jax.clear_caches()


def test_micro_batches_change_nothing():
    run = settings_of(latents_learn=True)
    *_, logged = after_a_step(run)
    parts = dataclasses.replace(run, devices=dataclasses.replace(run.devices, micro_batches=4))
    *_, again = after_a_step(parts)
    np.testing.assert_allclose(again["loss"], logged["loss"], rtol=1e-6)
    for group, norm in logged["gradient_norms"].items():
        np.testing.assert_allclose(again["gradient_norms"][group], norm, rtol=1e-4)
    assert logged["gradient_norms"]["mam"] > 0


def test_the_summary_of_what_is_seen_is_added_to_every_embedding():
    run = settings_of()
    params = step.initial_params(0, run.model, V)
    encoder, tokens = RankEncoder(run.model, V), jnp.asarray(unmasked(size=3).inputs_BxL)
    states = encoder.apply({"params": params}, tokens, method="encode")[0]
    bare = dataclasses.replace(run.model, latents=0)
    without = RankEncoder(bare, V).apply({"params": params}, tokens, method="encode")[0]
    added = np.asarray(states - without)
    read = encoder.apply(
        {"params": params}, without, tokens != PAD,
        method=lambda encoder, x, real: encoder.mam(x, real),
    )  # fmt: skip
    expected = np.broadcast_to(read.mean(1)[:, None], added.shape)
    np.testing.assert_allclose(added, expected, atol=1e-6)
    assert np.abs(added).max() > 0


def test_padding_is_attended_by_no_latent():
    run = settings_of()
    params, tokens = step.initial_params(0, run.model, V), unmasked(size=3).inputs_BxL
    encoder = RankEncoder(run.model, V)
    weights = encoder.apply({"params": params}, tokens, method="attention_of_latents")
    assert not np.asarray(weights)[:, 0, 0][tokens == PAD].any()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_mam_wants_latents_and_they_want_mam():
    run = Settings.from_config(smoke.get_config()).run
    for change in ({"masking": dataclasses.replace(run.masking, strategy="mam")},
                   {"model": dataclasses.replace(run.model, latents=4)}):  # fmt: skip
        with pytest.raises(ValueError, match="masking.strategy=mam and model.latents=128"):
            dataclasses.replace(run, **change)
