"""The loss kernels: a literal float64 form, known answers, extremes, and which program ran."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from kernels.cab import blocked, cab_loss, masked_lm_loss

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
def compiled(implementation: str, variant: str, similarity: str, block: int):
    """Jitted (loss, its parts), gradients; traced with blocks of at most so many genes."""

    def loss(hidden, embedding, bias, labels, known):
        kind = {"variant": variant, "similarity": similarity, "implementation": implementation}
        if variant == "mlm":
            out = masked_lm_loss(hidden, embedding, bias, labels, implementation=implementation)
        else:
            out = cab_loss(hidden, embedding, bias, labels, known, **kind)
        return out.cross_entropy + 0.7 * out.similarity, out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def run(arrays, variant, similarity, *, implementation="blocked", block=64, dtype=np.float64):
    """Parts of the loss and the gradients by hidden states, embedding and bias, in a precision."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(dtype == np.float64):
        patch.setattr(blocked, "BLOCK", block)
        cast = [a.astype(dtype) if a.dtype.kind == "f" else a for a in arrays]
        (_, out), grads = compiled(implementation, variant, similarity, block)(*cast)
        return jax.device_get(out), jax.device_get(grads)


def assert_close(found, wanted, tolerance: float):
    """Values, and each gradient by its norm."""
    (out, grads), (out_wanted, grads_wanted) = found, wanted
    for name in ("cross_entropy", "similarity", "positions", "pairs"):
        value, literal_value = getattr(out, name), getattr(out_wanted, name)
        np.testing.assert_allclose(value, literal_value, tolerance, tolerance, err_msg=name)
    for name, grad, want in zip(("hidden", "embedding", "bias"), grads, grads_wanted, strict=True):
        assert np.isfinite(grad).all(), name
        error = np.linalg.norm((grad - want).ravel())
        assert error <= tolerance * max(np.linalg.norm(want.ravel()), 1e-3), (name, error)


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
    arrays, kind = draw(**{**ONE, "V": V}), ("recalibrated", "cosine")
    wanted = run(arrays, *kind, implementation="reference")
    found = run(arrays, *kind, block=block)
    assert_close(found, wanted, 1e-9)
    real = arrays[3] >= 0
    for of_found, of_wanted in zip(found[0][-2:], wanted[0][-2:], strict=True):
        np.testing.assert_array_equal(of_found[real], of_wanted[real])


@pytest.mark.slow
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(2, 200), st.integers(1, 5),
    st.sampled_from(KINDS), st.sampled_from((64, 128, 512)), st.integers(0, 99),
)
def test_drawn_shapes(B, M, V, D, kind, block, seed):
    arrays = draw(B, M, V, D, seed, scale=2.0)
    wanted = run(arrays, *kind, implementation="reference")
    assert_close(run(arrays, *kind, block=block), wanted, 1e-9)


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
    arrays = draw(**ONE)
    EXTREMES[extreme](arrays)
    wanted = run(arrays, variant, "cosine", implementation="reference")
    nll, alike, _ = literal(*arrays, variant, "cosine")
    np.testing.assert_allclose(wanted[0].cross_entropy, nll, 1e-8, 1e-12)
    np.testing.assert_allclose(wanted[0].similarity, alike, 1e-8, 1e-12)
    assert_close(run(arrays, variant, "cosine"), wanted, 1e-9)
    out, grads = run(arrays, variant, "cosine", dtype=np.float32)
    assert all(np.isfinite(g).all() for g in grads)
    np.testing.assert_allclose(out.cross_entropy, nll, 1e-4, 1e-6)
    # A cosine is at most 1; float32 cannot tell 1 - P from 0 where P is within 1e-7 of 1.
    assert -1e-6 <= out.similarity <= out.pairs * (1 + 1e-5)
    if extreme != "P near 1":
        np.testing.assert_allclose(out.similarity, alike, 1e-3, 1e-3)


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


def test_bfloat16_states_accumulate_in_float32():
    hidden, embedding, bias, labels, known = [jnp.asarray(a) for a in draw(2, 7, 70, 64)]
    low, wide = hidden.astype(jnp.bfloat16), hidden.astype(jnp.bfloat16).astype(jnp.float32)
    both = compiled("blocked", "recalibrated", "cosine", 512)
    (_, out), grads = both(low, embedding / 8, bias, labels, known)
    (_, wanted), grads_wanted = both(wide, embedding / 8, bias, labels, known)
    assert out.cross_entropy.dtype == out.similarity.dtype == jnp.float32
    np.testing.assert_allclose(out.cross_entropy, wanted.cross_entropy, 1e-6)
    np.testing.assert_allclose(out.similarity, wanted.similarity, 1e-5)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for grad, want in zip(grads, grads_wanted, strict=True):
        assert jnp.linalg.norm((grad - want).ravel()) < 0.01 * jnp.linalg.norm(want.ravel())


def test_vmap_and_shard_map_give_the_same():
    arrays = [jnp.asarray(a, jnp.float32) if a.dtype == float else a for a in draw(8, 3, 70, 4)]

    def parts(*arrays):
        return jnp.stack(cab_loss(*arrays)[:4])

    whole = jax.jit(parts)(*arrays)
    one_by_one = jax.vmap(lambda h, y, k: parts(h[None], *arrays[1:3], y[None], k[None]))
    summed = jax.jit(one_by_one)(arrays[0], *arrays[3:]).sum(0)
    np.testing.assert_allclose(summed, whole, 1e-5)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, every = P("data"), P()
    sharded = jax.shard_map(
        lambda *a: jax.lax.psum(parts(*a), "data"), mesh=mesh,
        in_specs=(rows, every, every, rows, rows), out_specs=every, check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(sharded)(*arrays), whole, 1e-5)


def _largest(implementation, kind, *, gradient: bool) -> int:
    """Elements of the largest array in the compiled program."""
    arrays = [a.astype(np.float32) if a.dtype == float else a for a in draw(2, 24, 1500, 4)]
    both = compiled(implementation, *kind, 512)

    def forward(*arrays):
        return both(*arrays)[0]

    program = (both if gradient else jax.jit(forward)).lower(*arrays).compile().as_text()
    shapes = re.findall(r"\b(?:pred|[sufb]\w*\d+)\[([\d,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("kind", [("recalibrated", "cosine"), ("mlm", "none")])
def test_blocked_holds_no_array_over_slots_and_vocabulary(kind):
    BxMxV = 2 * 24 * 1500
    assert _largest("reference", kind, gradient=False) >= BxMxV
    for gradient in (False, True):
        # An array over the slots and one block of 512 is the largest there is.
        assert 2 * 24 * 500 <= _largest("blocked", kind, gradient=gradient) <= 2 * 24 * 512


def test_the_default_is_blocked_and_a_name_is_obeyed():
    arrays = draw(**ONE)

    def program(**named):
        return str(jax.make_jaxpr(lambda *a: cab_loss(*a, **named))(*arrays))

    assert program() == program(implementation="blocked") != program(implementation="reference")
    assert "f32[3,7,150]" in program(implementation="reference")
    for name in ("pallas", "Blocked", ""):
        with pytest.raises(ValueError, match="there are .*blocked.*reference"):
            cab_loss(*arrays, implementation=name)
        with pytest.raises(ValueError, match="there are .*blocked.*reference"):
            masked_lm_loss(*arrays[:4], implementation=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "Q"}, "variant 'Q'"),
        ({"similarity": "l2"}, "similarity 'l2'"),
        ({"labels_BxM": np.zeros((3, 8), int)}, "shapes do not fit"),
        ({"bias_V": np.zeros(149)}, "shapes do not fit"),
        ({"known_BxV": np.zeros((3, 149), bool)}, "known must be bool"),
        ({"known_BxV": np.zeros((3, 150))}, "known must be bool"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    names = ("hidden_BxMxD", "embedding_VxD", "bias_V", "labels_BxM", "known_BxV")
    with pytest.raises(ValueError, match=message):
        cab_loss(**{**dict(zip(names, draw(**ONE), strict=True)), **change})
