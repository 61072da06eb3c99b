"""The loss kernels: a literal float64 form, known answers, drawn shapes and extremes."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.cab import blocked, cab_loss, masked_lm_loss, passes, slotwise

KINDS = [(v, s) for v in ("recalibrated", "plain") for s in ("cosine", "dot", "none")]
FLOOR = 1e-18  # of the logarithm and of the sum that normalises Q
ONE = {"B": 3, "M": 7, "V": 150, "D": 6}  # the shape that most tests share, and so compile once


def draw(B, M, V, D, seed=0, scale=1.0) -> list[np.ndarray]:
    """Random float64 inputs; some slots are empty, the second cell (of more) wholly."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(B, M, D)) * scale
    embedding, bias = rng.normal(size=(V, D)), rng.normal(size=V)
    labels = rng.integers(0, V, (B, M))
    labels[rng.random((B, M)) < 0.2] = -1
    labels[1:2] = -1
    known = rng.random((B, V)) < 0.4
    for cell, of_cell in enumerate(labels):
        known[cell, of_cell[of_cell >= 0]] = False
    return [hidden, embedding, bias, labels, known]


def on_grid(arrays) -> list[np.ndarray]:
    """The same inputs as multiples of 1/32: their logits are then exact in float32 too.

    Rounding a logit of 80 to float32 alone changes P by 4e-6, whatever comes after.
    """
    return [np.round(a * 32) / 32 if a.dtype.kind == "f" else a for a in arrays]


def literal(hidden, embedding, bias, labels, known, variant, similarity):
    """The definitions, slot by slot and pair by pair: (cross entropy, pairs, {slot: (P, Q)})."""
    nll, alike, slots = 0.0, 0.0, {}
    for cell in range(len(labels)):
        rows, remaining = [], 1.0 - known[cell]
        for slot in np.flatnonzero(labels[cell] >= 0):
            logits = embedding @ hidden[cell, slot] + bias
            p = np.exp(logits - logits.max())
            p /= p.sum()
            q = p * remaining / max((p * remaining).sum(), FLOOR)
            remaining = remaining * (1 - p)
            nll -= np.log(max((q if variant == "recalibrated" else p)[labels[cell, slot]], FLOOR))
            slots[cell, slot] = p, q
            rows.append(q / max(np.linalg.norm(q), 1e-12) if similarity == "cosine" else q)
        if similarity != "none":
            alike += sum(rows[i] @ rows[j] for j in range(len(rows)) for i in range(j))
    return nll, alike, slots


@functools.lru_cache
def compiled(implementation: str, variant: str, similarity: str, block=512, parts=8):
    """Jitted (loss, its parts), gradients; traced with blocks of at most so many genes, and slots
    cut into so many parts."""

    def loss(hidden, embedding, bias, labels, known):
        kind = {"variant": variant, "similarity": similarity, "implementation": implementation}
        if variant == "mlm":
            out = masked_lm_loss(hidden, embedding, bias, labels, implementation=implementation)
        else:
            out = cab_loss(hidden, embedding, bias, labels, known, **kind)
        return out.cross_entropy + 0.7 * out.similarity, out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def run(
    arrays, variant, similarity, *, implementation="blocked", block=64, parts=8, dtype=np.float64
):
    """Parts of the loss and the gradients by hidden states, embedding and bias, in a precision."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(dtype == np.float64):
        patch.setattr(blocked, "BLOCK", block)
        patch.setattr(slotwise, "PARTS", parts)
        cast = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
        (_, out), grads = compiled(implementation, variant, similarity, block, parts)(*cast)
        return jax.device_get(out), jax.device_get(grads)


def assert_close(found, wanted, tolerance: float, least: float = 1e-3):
    """Values, and each gradient by its norm, or by the least norm that counts."""
    (out, grads), (out_wanted, grads_wanted) = found, wanted
    for name in ("cross_entropy", "similarity", "positions", "pairs"):
        value, literal_value = getattr(out, name), getattr(out_wanted, name)
        np.testing.assert_allclose(value, literal_value, tolerance, tolerance, err_msg=name)
    for name, grad, want in zip(("hidden", "embedding", "bias"), grads, grads_wanted, strict=True):
        assert np.isfinite(grad).all(), name
        error = np.linalg.norm((grad - want).ravel())
        assert error <= tolerance * max(np.linalg.norm(want.ravel()), least), (name, error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_values_are_those_of_the_literal_form(kind, implementation):
    arrays = draw(**ONE)
    out, _ = run(arrays, *kind, implementation=implementation)
    nll, alike, slots = literal(*arrays, *kind)
    np.testing.assert_allclose(out.cross_entropy, nll, 1e-12)
    np.testing.assert_allclose(out.similarity, alike, 1e-12)
    per_cell = (arrays[3] >= 0).sum(1)
    assert out.positions == per_cell.sum() and per_cell[1] == 0
    assert out.pairs == sum(n * (n - 1) / 2 for n in per_cell)
    for top_BxM in (out.top_p_BxM, out.top_q_BxM):
        assert ((top_BxM == -1) == (arrays[3] == -1)).all()
    for slot, (p, q) in slots.items():
        assert out.top_p_BxM[slot] == p.argmax() and out.top_q_BxM[slot] == q.argmax()


@pytest.mark.parametrize("kind", [*KINDS, ("mlm", "none")])
def test_gradients_are_those_of_the_reference(kind):
    arrays = draw(**ONE)
    wanted = run(arrays, *kind, implementation="reference")
    assert all(np.linalg.norm(g.ravel()) > 1e-2 for g in wanted[1])
    assert_close(run(arrays, *kind), wanted, 1e-9)
    single = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in arrays]
    wanted = run(single, *kind, implementation="reference")
    assert_close(run(single, *kind, dtype=np.float32), wanted, 1e-5)


@pytest.mark.parametrize(("block", "V"), [(7, 150), (512, 150), (64, 128)])
def test_blocks_of_any_size_give_the_same(block, V):
    assert_same_as_reference(draw(**{**ONE, "V": V}), ("mlm", "none"), block=block)


@pytest.mark.parametrize("parts", [1, 2, 4, 100])
def test_any_number_of_parts_gives_the_same(parts):
    assert_same_as_reference(draw(**ONE), ("recalibrated", "cosine"), parts=parts)


def test_slots_at_once_are_an_eighth_and_few_where_there_are_many_cells():
    assert [slotwise.at_once(1, M) for M in (1, 8, 9, 384)] == [1, 1, 2, 48]
    assert [slotwise.at_once(B, 1_000) for B in (1, 4, 12, 500)] == [125, 48, 16, 16]


@pytest.mark.parametrize("filled", [0, 1, 5, 6, 37])
def test_slots_behind_the_last_filled_part_are_not_read(filled):
    hidden, embedding, bias, labels, known = draw(**{**ONE, "M": 37})
    labels[:, filled:] = -1
    labels[0, :filled] = known[0].argmin()
    first_unread = -(-filled // 5) * 5  # of 37 slots 5 at a time
    hidden[:, first_unread:] = 0.0
    zeroed = [hidden.copy(), embedding, bias, labels, known]
    wanted = run(zeroed, "recalibrated", "cosine", implementation="reference")
    hidden[:, first_unread:] = np.nan
    kind = passes.Cut(blocked, "recalibrated", "cosine", None)

    def loss(*arrays):
        cross_entropy, alike, *_ = slotwise.cab(kind, *arrays, labels, known)
        return cross_entropy + 0.7 * alike, (cross_entropy, alike)

    with jax.enable_x64(True):
        (_, sums), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
            hidden, embedding, bias
        )
    np.testing.assert_allclose(sums, (wanted[0].cross_entropy, wanted[0].similarity), 1e-12)
    for grad, want in zip(grads, wanted[1], strict=True):
        np.testing.assert_allclose(grad, want, 1e-12, 1e-12)


def assert_same_as_reference(arrays, kind, **cut):
    wanted = run(arrays, *kind, implementation="reference")
    found = run(arrays, *kind, **cut)
    assert_close(found, wanted, 1e-9)
    real = arrays[3] >= 0
    for of_found, of_wanted in zip(found[0][-2:], wanted[0][-2:], strict=True):
        np.testing.assert_array_equal(of_found[real], of_wanted[real])


@pytest.mark.slow
@settings(max_examples=30, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 19), st.integers(2, 200), st.integers(1, 5),
    st.sampled_from([*KINDS, ("mlm", "none")]), st.sampled_from((64, 128, 512)),
    st.sampled_from((1, 3, 8)), st.sampled_from((1.0, 5.0)), st.integers(0, 99),
)
def test_drawn_shapes(B, M, V, D, kind, block, parts, scale, seed):
    arrays, cut = on_grid(draw(B, M, V, D, seed, scale)), {"block": block, "parts": parts}
    wanted = run(arrays, *kind, implementation="reference")
    assert_close(run(arrays, *kind, **cut), wanted, 1e-9)
    assert_close(run(arrays, *kind, **cut, dtype=np.float32), wanted, 1e-5)


def _one_unknown(arrays):
    arrays[4][:] = True
    arrays[4][:, 5] = False
    arrays[3][arrays[3] >= 0] = 5


def _none_unknown(arrays):
    arrays[4][:] = True


def _duplicate_rows(arrays):
    arrays[0][:] = arrays[0][:, :1]
    arrays[3][0] = arrays[3][0].max()


def _sure(arrays):
    """P of each slot's own gene is 1 - 5e-8."""
    arrays[0][:], arrays[1][:], arrays[2][:] = 0, 0, 0
    genes, away = arrays[1].shape[0], np.log((1 - 5e-8) / 5e-8)
    for slot in range(6):
        arrays[0][:, slot, slot] = 1
        arrays[1][slot, slot] = away + np.log(genes - 1)
        arrays[4][:, slot] = False
    arrays[3][:, :6] = np.arange(6)


def _large_logits(arrays):
    arrays[0][..., 0] = np.sign(arrays[0][..., 0])
    arrays[1][:, 0] = 80 * np.sign(arrays[1][:, 0])


def _mass_on_a_known_gene(gap: float):
    def change(arrays):
        arrays[0][..., 0], arrays[1][:, 0] = 1, 0
        arrays[1][7, 0] = gap
        arrays[4][:, 7] = True
        arrays[3][arrays[3] == 7] = -1

    return change


EXTREMES = {
    "one gene unknown": _one_unknown,
    "none unknown": _none_unknown,
    "duplicate rows": _duplicate_rows,
    "P near 1": _sure,
    "logits of 80": _large_logits,
    "1e-9 left": _mass_on_a_known_gene(24.0),
    "3e-17 left": _mass_on_a_known_gene(43.0),
    "less than the floor left": _mass_on_a_known_gene(60.0),
}


@pytest.mark.parametrize("variant", ["recalibrated", "plain"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes(extreme, variant):
    arrays = on_grid(draw(**ONE))
    EXTREMES[extreme](arrays)
    arrays = [a.astype(np.float32).astype(a.dtype) if a.dtype == float else a for a in arrays]
    wanted = run(arrays, variant, "cosine", implementation="reference")
    nll, alike, _ = literal(*arrays, variant, "cosine")
    np.testing.assert_allclose(wanted[0].cross_entropy, nll, 1e-8, 1e-12)
    np.testing.assert_allclose(wanted[0].similarity, alike, 1e-8, 1e-12)
    assert_close(run(arrays, variant, "cosine"), wanted, 1e-9)
    # With one gene left, Q is 1 whatever the logits: the gradient is 0, its parts are not.
    least = 1.0 if extreme == "one gene unknown" else 1e-9
    assert_close(run(arrays, variant, "cosine", dtype=np.float32), wanted, 1e-5, least)


def _two_slots(logits, labels, known):
    """One cell with two slots of these logits, in the shared shape; other genes have P = 0."""
    hidden, embedding = np.zeros((3, 7, 6)), np.zeros((150, 6))
    hidden[0, :2, 0], embedding[: len(logits), 0] = 1, logits
    bias = np.where(np.arange(150) < len(logits), 0.0, -1e4)
    of_slots, of_genes = np.full((3, 7), -1), np.zeros((3, 150), bool)
    of_slots[0, :2], of_genes[0, known] = labels, True
    return [hidden, embedding, bias, of_slots, of_genes]


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_the_logarithm_is_clamped_without_gradient(implementation):
    highest = -np.log(FLOOR)
    logits = [0.0, 0.0, -50.0, 0.0]
    out, grads = run(_two_slots(logits, [2, 3], []), "plain", "none", implementation=implementation)
    np.testing.assert_allclose(out.cross_entropy, highest + np.log(3), 1e-12)
    alone = _two_slots(logits, [-1, 3], [])
    _, grads_alone = run(alone, "plain", "none", implementation=implementation)
    for grad, want in zip(grads, grads_alone, strict=True):
        np.testing.assert_allclose(grad, want, 1e-12, 1e-18)

    known = _two_slots(logits, [2, 3], [2, 3])  # Q of both true genes is 0
    out, grads = run(known, "recalibrated", "none", implementation=implementation)
    np.testing.assert_allclose(out.cross_entropy, 2 * highest, 1e-12)
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_the_sum_that_normalises_q_is_clamped(implementation):
    # The known gene leaves e^-46 = 1.05e-20 to each of two genes.
    arrays = _two_slots([46.0, 0.0, 0.0], [1, 2], [0])
    q = np.exp(-46.0) / FLOOR
    out, grads = run(arrays, "recalibrated", "none", implementation=implementation)
    np.testing.assert_allclose(out.cross_entropy, -2 * np.log(q), 1e-12)
    # d log Q_i(y) = d log P_i(y) with the sum held fast: 1 at y, -P elsewhere.
    np.testing.assert_allclose(grads[2][:3], [2, -1, -1], 1e-12)
    out, _ = run(arrays, "recalibrated", "dot", implementation=implementation)
    np.testing.assert_allclose(out.similarity, 2 * q * q, 1e-12)
    out, _ = run(arrays, "recalibrated", "cosine", implementation=implementation)
    np.testing.assert_allclose(out.similarity, 1.0, 1e-12)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_the_length_of_a_row_is_clamped(implementation):
    arrays = _two_slots([72.0, 0.0, 0.0], [1, 2], [0])
    q = np.exp(-72.0) / FLOOR  # 5e-14, below the least length of 1e-12
    out, _ = run(arrays, "plain", "cosine", implementation=implementation)
    np.testing.assert_allclose(out.similarity, 2 * (q / 1e-12) ** 2, 1e-10)


def test_known_genes_are_never_read_from_q():
    for seed in range(5):
        hidden, embedding, bias, labels, known = arrays = draw(**ONE, seed=seed)
        bias[known[0]] += 5.0
        out, _ = run(arrays, "recalibrated", "cosine")
        real = labels >= 0
        predicted = [np.take(known[b], out.top_q_BxM[b][real[b]]) for b in range(3)]
        assert not np.concatenate(predicted).any()
        assert np.take(known[0], out.top_p_BxM[0][real[0]]).mean() > 0.5


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_the_lowest_gene_among_equals_is_predicted(implementation):
    hidden, embedding, bias, labels, known = draw(**ONE)
    known[:] = np.arange(150) < 70
    arrays = [hidden, embedding * 0, bias * 0, np.maximum(labels, 0), known]
    out, _ = run(arrays, "recalibrated", "cosine", implementation=implementation)
    assert (out.top_p_BxM == 0).all() and (out.top_q_BxM == 70).all()


@pytest.mark.parametrize("kind", [("recalibrated", "cosine"), ("plain", "dot"), ("mlm", "none")])
def test_empty_slots_change_nothing(kind):
    hidden, embedding, bias, labels, known = draw(**ONE)
    labels[0] = np.where(np.arange(7) % 3 == 1, -1, 9)
    wanted = run([hidden, embedding, bias, labels, known], *kind)
    other = np.where((labels < 0)[..., None], 50.0, hidden)
    found = run([other, embedding, bias, labels, known], *kind)
    assert_close(found, wanted, 1e-14)
    assert (found[1][0][labels < 0] == 0).all() and (found[1][0][labels >= 0] != 0).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [5, 20])
def test_the_references_gradients_are_finite_in_float32(kind, scale):
    arrays = on_grid(draw(**ONE, seed=4, scale=scale))
    with jax.enable_x64(True):
        _, wanted = compiled("reference", *kind)(*arrays)
    low = [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]
    _, grads = compiled("reference", *kind, block=511)(*low)
    for grad, want in zip(*jax.device_get((grads, wanted)), strict=True):
        assert np.linalg.norm(grad - want) <= 1e-4 * np.linalg.norm(want)


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("kind", [*KINDS, ("mlm", "none")])
def test_a_state_that_is_not_a_number_shows_in_the_loss(kind, implementation):
    hidden, *rest = draw(**ONE)
    hidden[0, np.flatnonzero(rest[2][0] >= 0)[0], 2] = np.nan
    with jax.enable_x64(True):
        (loss, _), _ = compiled(implementation, *kind)(hidden, *rest)
    assert np.isnan(loss)


@pytest.mark.parametrize("kind", [*KINDS, ("mlm", "none")])
def test_what_stands_at_an_empty_slot_does_not_count(kind):
    hidden, *rest = draw(**ONE)
    wanted = run([hidden, *rest], *kind)
    hidden[rest[2] < 0] = np.nan
    found = run([hidden, *rest], *kind)
    assert_close(found, wanted, 1e-12)


@pytest.mark.parametrize("kind", [*KINDS, ("mlm", "none")])
def test_genes_that_are_ruled_out_by_their_bias_fill_whole_blocks(kind):
    hidden, embedding, bias, labels, known = draw(**ONE)
    bias[40:], labels[labels >= 40] = -np.inf, 7
    known[:, 7] = False
    found = run([hidden, embedding, bias, labels, known], *kind, block=64)
    few = [hidden, embedding[:40], bias[:40], labels, known[:, :40]]
    out, grads = run(few, *kind, implementation="reference")
    cut = [grads[0], *(np.pad(g, [(0, 110)] + [(0, 0)] * (g.ndim - 1)) for g in grads[1:])]
    assert_close(found, (out, cut), 1e-9)


def test_second_derivatives_are_finite_with_empty_slots():
    hidden, *rest = [np.asarray(a) for a in draw(1, 3, 9, 2)]
    rest[2][0] = [3, -1, 5]
    rest[3][:] = False

    def twice(implementation):
        def of(hidden):
            return cab_loss(hidden, *rest, implementation=implementation).similarity

        return jax.jacrev(jax.grad(of))(hidden)

    with jax.enable_x64(True):
        np.testing.assert_allclose(twice("blocked"), twice("reference"), 1e-9, 1e-12)
