"""The objectives against their definitions written out over all positions and the vocabulary."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.cab import blocked
from scaling.corpus.tokens import PAD
from scaling.pretrain import masking
from scaling.pretrain.objectives import Loss, ObjectiveSettings, objective

L, V, D = 40, 150, 5
LENGTHS = (40, 23, 1, 31, 7)
MASK_SEED = 20
COUNTS = [2, 4, 0, 3, 1]  # masked positions of each cell under the mask seed
MASKING = masking.MaskingSettings(0.15, 0.8, 0.1, False)
CAB = ObjectiveSettings("cab", "recalibrated", "cosine", 0.15, "masked_pairs")
KINDS = [
    CAB,
    dataclasses.replace(CAB, denominator="published", weight=1.0),
    dataclasses.replace(CAB, similarity="dot", denominator="published"),
    dataclasses.replace(CAB, variant="plain"),
    dataclasses.replace(CAB, variant="plain", denominator="published", weight=200.0),
    dataclasses.replace(CAB, variant="plain", similarity="dot", denominator="published"),
    dataclasses.replace(CAB, name="cab_no_similarity", denominator="published"),
    dataclasses.replace(CAB, name="mlm", variant="plain", denominator="published"),
]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", 64)


@functools.lru_cache
def masked() -> tuple[np.ndarray, masking.MaskedCells, np.ndarray]:
    """Tokens BxL of cells of distinct genes, the cells after masking, and what was selected BxL."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((len(LENGTHS), L), np.int32)
    for cell, length in zip(tokens, LENGTHS, strict=True):
        cell[:length] = rng.permutation(np.arange(2, V))[:length]
    draw = MASK_SEED, np.zeros(len(tokens), np.int32), np.arange(len(tokens))
    cells = masking.mask_cells(tokens, *draw, V, MASKING)
    selected = np.zeros(tokens.shape, bool)
    for cell, slot in np.argwhere(cells.labels_BxM >= 0):
        selected[cell, cells.slots_BxM[cell, slot]] = True
    return tokens, cells, selected


def known(cells: masking.MaskedCells) -> jax.Array:
    return masking.known_genes(cells, V)


def inputs() -> list[np.ndarray]:
    """States at all positions, embedding and bias, float64."""
    rng = np.random.default_rng(1)
    shapes = (len(LENGTHS), L, D), (V, D), (V,)
    return [rng.normal(size=shape) for shape in shapes]


def oracle(hidden_BxLxD, embedding, bias, kind: ObjectiveSettings) -> float:
    """The loss as it is defined: P, K, C and Q at every position, pairs over all of a cell."""
    tokens, _, selected = masked()
    logits = hidden_BxLxD @ embedding.T + bias
    P_BxLxV = np.exp(logits - logits.max(-1, keepdims=True))
    P_BxLxV /= P_BxLxV.sum(-1, keepdims=True)
    nll, alike, pairs, published = 0.0, 0.0, 0.0, 0.0
    for cell in range(len(tokens)):
        K_V = np.zeros(V)
        K_V[tokens[cell, ~selected[cell]]] = 1
        C_V = 1 - K_V
        rows_LxV = np.zeros((L, V))
        for i in range(L):
            if not selected[cell, i]:
                rows_LxV[i, tokens[cell, i]] = 1  # what is known is certain
                continue
            P_V = P_BxLxV[cell, i]
            Q_V = P_V * C_V / max((P_V * C_V).sum(), 1e-18)
            C_V = C_V * (1 - P_V)
            rows_LxV[i] = Q_V
            read = Q_V if kind.name != "mlm" and kind.variant == "recalibrated" else P_V
            nll -= np.log(max(read[tokens[cell, i]], 1e-18))
            published += L - 1 - i
        if kind.similarity == "cosine":
            rows_LxV /= np.maximum(np.linalg.norm(rows_LxV, axis=1), 1e-12)[:, None]
        count = selected[cell].sum()
        pairs += count * (count - 1) / 2
        for i in range(L):
            for j in range(i + 1, L):
                if kind.denominator == "published":
                    counted = selected[cell, i] or kind.variant == "plain"
                else:
                    counted = selected[cell, i] and selected[cell, j]
                alike += counted * (rows_LxV[i] @ rows_LxV[j])
    loss = nll / selected.sum()
    if kind.name != "cab":
        return loss
    if kind.denominator == "published":
        pairs = published if kind.variant == "recalibrated" else len(tokens) * L * (L - 1) / 2
    return loss + kind.weight * alike / pairs


@functools.lru_cache
def compiled(kind: ObjectiveSettings):
    _, cells, _ = masked()

    def loss(hidden_BxLxD, embedding, bias):
        hidden_BxMxD = jnp.take_along_axis(hidden_BxLxD, cells.slots_BxM[..., None], axis=1)
        return objective(hidden_BxMxD, embedding, bias, cells, known(cells), kind)[0].value(kind)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def test_the_masked_cells_are_what_the_tests_need():
    tokens, cells, selected = masked()
    assert list(selected.sum(1)) == COUNTS
    assert not (selected & (tokens == PAD)).any() and cells.surplus_B.sum() == 0
    unchanged = selected & (cells.inputs_BxL == tokens)
    random = selected & (cells.inputs_BxL > 1) & ~unchanged
    assert unchanged.any() and random.any()


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_definition(kind):
    arrays = inputs()
    with jax.enable_x64(True):
        value, grads = jax.device_get(compiled(kind)(*arrays))
    np.testing.assert_allclose(value, oracle(*arrays, kind), 1e-12)
    rng = np.random.default_rng(2)
    for k, grad in enumerate(grads):
        along = rng.normal(size=grad.shape) + 10 * grad / np.linalg.norm(grad.ravel())
        along /= np.linalg.norm(along.ravel())

        def at(step, k=k, along=along):
            moved = [a + step * along if n == k else a for n, a in enumerate(arrays)]
            return oracle(*moved, kind)

        h = 1e-3  # central difference of fourth order
        slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        error = abs((grad * along).sum() - slope)
        assert error < 1e-9 * max(np.linalg.norm(grad.ravel()), 0.1)
        assert abs(slope) > 1e-3


@pytest.mark.parametrize("kind", [CAB, KINDS[4]])
def test_float32_is_as_exact_as_float32_can_be(kind):
    single = [a.astype(np.float32) for a in inputs()]
    value, grads = jax.device_get(compiled(kind)(*single))
    double = [a.astype(np.float64) for a in single]
    with jax.enable_x64(True):
        _, grads_wanted = jax.device_get(compiled(kind)(*double))
    np.testing.assert_allclose(value, oracle(*double, kind), 1e-5)
    for grad, want in zip(grads, grads_wanted, strict=True):
        error = np.linalg.norm((grad - want).ravel())
        assert grad.dtype == np.float32 and error < 1e-5 * np.linalg.norm(want.ravel())


def test_no_masked_position_is_no_loss_and_no_gradient():
    _, cells, _ = masked()
    nothing = cells._replace(labels_BxM=np.full_like(cells.labels_BxM, -1))
    hidden, embedding, bias = (a.astype(np.float32) for a in inputs())
    for kind in (CAB, KINDS[1]):

        def loss(*arrays, kind=kind):
            states = hidden[:, : cells.slots_BxM.shape[1]]
            sums, _ = objective(states, *arrays, nothing, known(nothing), kind)
            return sums.value(kind)

        value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(embedding, bias)
        assert value == 0 and all((g == 0).all() for g in grads)


def test_the_similarity_is_weighted_only_where_there_is_one():
    sums = Loss(*(jnp.float32(x) for x in (12.0, 4.0, 30.0, 10.0)))
    assert sums.value(dataclasses.replace(CAB, weight=2.0)) == 3 + 2 * 3
    for name in ("mlm", "cab_no_similarity"):
        assert sums.value(dataclasses.replace(CAB, name=name, weight=2.0)) == 3
    two = jax.tree.map(lambda a, b: a + b, sums, Loss(*(jnp.float32(x) for x in (0, 2, 0, 2))))
    assert two.value(CAB) == jnp.float32(12 / 6 + 0.15 * 30 / 12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "bert"}, "objective.name is 'bert'; one of mlm, cab, cab_no_similarity"),
        ({"variant": "Q"}, "objective.variant is 'Q'"),
        ({"similarity": "none"}, "objective.similarity is 'none'"),
        ({"denominator": "pairs"}, "objective.denominator is 'pairs'"),
        ({"weight": 0.0}, "choose objective.name=cab_no_similarity"),
        ({"weight": -1.0}, "objective.weight is -1.0"),
        ({"weight": float("nan")}, "objective.weight is nan"),
    ],
)
def test_settings_that_contradict_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CAB, **wrong)


@pytest.mark.parametrize("name", ["cab", "mlm"])
def test_the_implementation_that_is_named_computes_the_loss(name):
    _, cells, _ = masked()
    hidden, embedding, bias = inputs()
    states = np.take_along_axis(hidden, cells.slots_BxM[..., None], 1)

    def program(implementation):
        kind = dataclasses.replace(CAB, name=name, implementation=implementation)
        arrays = states, embedding, bias
        return str(jax.make_jaxpr(lambda *a: objective(*a, cells, known(cells), kind)[0])(*arrays))

    assert program("default") == program("blocked") != program("reference")
    with pytest.raises(ValueError, match="objective.implementation is 'fast'; one of default"):
        dataclasses.replace(CAB, implementation="fast")
