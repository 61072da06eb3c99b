"""Attention some queries at a time: Flax's own attention, dropout, and what the program holds."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.pretrain import attention
from scaling.pretrain.attention import QUERIES, SCORES, attend


def draw(length: int):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(2, length, 3, 4)).astype(np.float32) for _ in range(4)]
    mask = np.ones((2, 1, 1, length), bool)
    mask[0, ..., length // 2 :] = False
    return *arrays, mask


def blocked(query, key, value, mask, rate=0.0, seed=0):
    rng = jax.random.key(seed)
    return attend(
        query, key, value, mask=mask, dropout_rng=rng, dropout_rate=rate, deterministic=rate == 0
    )


@pytest.mark.parametrize("length", [5, QUERIES, 2 * QUERIES + 17])
def test_values_and_gradients_are_those_of_plain_attention(length):
    *arrays, weight, mask = draw(length)

    def loss(attention, *arrays):
        return (attention(*arrays, mask=mask) * weight).sum()

    for way in (nn.dot_product_attention, blocked):
        with jax.enable_x64(True):
            wide = [a.astype(np.float64) for a in arrays]
            found = jax.value_and_grad(functools.partial(loss, way), (0, 1, 2))(*wide)
        if way is nn.dot_product_attention:
            wanted = found
    np.testing.assert_allclose(found[0], wanted[0], 1e-9)
    for grad, want in zip(found[1], wanted[1], strict=True):
        assert np.linalg.norm(want) > 1
        np.testing.assert_allclose(grad, want, 1e-9, 1e-12)


def test_dropout_takes_its_share_and_keeps_the_mean():
    length = QUERIES + 50
    query, key, _, _, mask = draw(length)
    one_hot = np.eye(length, dtype=np.float32)[None, :, None]
    one_hot = np.broadcast_to(one_hot, (2, length, 3, length))
    weights = blocked(query, key, one_hot, mask)
    dropped = blocked(query, key, one_hot, mask, rate=0.25)
    kept = np.asarray(dropped)[1] != 0
    assert abs(kept.mean() - 0.75) < 0.01
    assert (kept == kept[:, :1]).all() and not (kept[0] == kept[QUERIES]).all()
    np.testing.assert_allclose(np.asarray(dropped)[1][kept] * 0.75, weights[1][kept], 1e-5)
    again = blocked(query, key, one_hot, mask, rate=0.25)
    other = blocked(query, key, one_hot, mask, rate=0.25, seed=1)
    assert (again == dropped).all() and not (other == dropped).all()


def test_gradients_with_dropout_are_those_of_the_weights_it_leaves():
    *arrays, weight, mask = draw(QUERIES + 9)
    length = QUERIES + 9
    with jax.enable_x64(True):
        query, key, value = (a.astype(np.float64) for a in arrays)
        one_hot = np.broadcast_to(np.eye(length)[None, :, None], (2, length, 3, length))
        kept_BxLxHxL = blocked(query, key, one_hot, np.ones_like(mask), rate=0.25) != 0
        kept_BxHxLxL = jnp.swapaxes(kept_BxLxHxL, 1, 2)

        def plain(query, key, value):
            scores = jnp.einsum("bqhe,bkhe->bhqk", query, key) / 2
            weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) * kept_BxHxLxL / 0.75
            return jnp.einsum("bhqk,bkhe->bqhe", weights, value)

        def gradients(attention):
            return jax.grad(lambda *a: (attention(*a) * weight).sum(), (0, 1, 2))(query, key, value)

        ours = gradients(lambda *a: blocked(*a, mask, rate=0.25))
        for grad, want in zip(ours, gradients(plain), strict=True):
            assert np.linalg.norm(want) > 1
            np.testing.assert_allclose(grad, want, 1e-9, 1e-12)


def test_bfloat16_loses_far_less_than_with_scores_in_bfloat16():
    *arrays, weight, mask = draw(2 * QUERIES)
    low = [jnp.asarray(4 * a, jnp.bfloat16) for a in arrays]

    def found(attention, dtype):
        out, pull = jax.vjp(lambda *a: attention(*a, mask=mask), *[a.astype(dtype) for a in low])
        return [out, *pull(jnp.asarray(weight, dtype))]

    exact = found(blocked, jnp.float32)
    ours, flax = found(blocked, jnp.bfloat16), found(nn.dot_product_attention, jnp.bfloat16)
    for narrow, other, wide in zip(ours, flax, exact, strict=True):
        assert narrow.dtype == jnp.bfloat16
        error = np.linalg.norm(narrow.astype(np.float32) - wide)
        error_of_flax = np.linalg.norm(other.astype(np.float32) - wide)
        assert 0 < error < error_of_flax / 2


def test_a_cell_without_a_gene_has_finite_gradients():
    *arrays, weight, mask = draw(40)
    grads = jax.grad(lambda *a: (blocked(*a, mask & False) * weight).sum(), (0, 1, 2))(*arrays)
    assert all(np.isfinite(grad).all() for grad in grads)


def test_no_scores_of_more_than_a_heads_block_are_held():
    length = 3 * QUERIES
    *arrays, weight, mask = draw(length)

    def loss(*arrays):
        return (blocked(*arrays, mask, rate=0.1) * weight).sum()

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
    largest = {}
    for kind, shape in re.findall(r"\b(pred|[sufb]\w*\d+)\[([\d,]+)\]", program):
        size = int(np.prod([int(n) for n in shape.split(",")]))
        largest[kind] = max(largest.get(kind, 0), size)
    assert largest.pop("f32") == QUERIES * length <= SCORES
    assert largest.pop("pred") == length**2  # what dropout keeps, the same for all cells and heads
    assert max(largest.values()) < length**2


@pytest.mark.parametrize("at_once", [1, 2, 4, 6])
def test_how_many_heads_are_computed_at_a_time_changes_nothing(at_once, monkeypatch):
    *arrays, weight, mask = draw(40)

    def gradients():
        return jax.grad(lambda *a: (blocked(*a, mask, rate=0.2) * weight).sum(), (0, 1, 2))(*arrays)

    wanted = gradients()
    monkeypatch.setattr(attention, "SCORES", at_once * 40 * 40)
    for grad, want in zip(gradients(), wanted, strict=True):
        np.testing.assert_allclose(grad, want, 1e-4, 1e-6)


def test_a_cell_without_a_gene_has_the_gradients_of_flax():
    *arrays, weight, mask = draw(40)

    def grads(attention):
        return jax.grad(lambda *a: (attention(*a, mask=mask & False) * weight).sum(), (0, 1, 2))(
            *arrays
        )

    for found, wanted in zip(grads(blocked), grads(nn.dot_product_attention), strict=True):
        np.testing.assert_allclose(found, wanted, 1e-5, 1e-6)
