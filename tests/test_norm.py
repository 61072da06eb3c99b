"""Layer norm against Flax's: values, gradients, parameters, and what is kept between the passes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.pretrain.norm import Norm

EPSILON = 1e-12


def draw(dtype=np.float64):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(2, 3, size=(2, 3, 5, 8)).astype(dtype)
    params = {"scale": rng.normal(size=8), "bias": rng.normal(size=8)}
    return x, weight, {"params": params}


def values_and_gradients(module, x, weight, params):
    def loss(x, params):
        return (module.apply(params, x).astype(weight.dtype) * weight).sum()

    return module.apply(params, x), jax.grad(loss, (0, 1))(x, params)


def test_values_and_gradients_are_those_of_flax():
    with jax.enable_x64(True):
        found, wanted = (
            values_and_gradients(module(EPSILON), *draw()) for module in (Norm, nn.LayerNorm)
        )
        for ours, flax in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            assert ours.dtype == flax.dtype and np.linalg.norm(flax) > 1
            np.testing.assert_allclose(ours, flax, 1e-9, 1e-12)


def test_parameters_are_those_of_flax():
    x = jnp.ones((2, 8))
    with jax.enable_x64(True):
        ours, flax = (module(EPSILON).init(jax.random.key(0), x) for module in (Norm, nn.LayerNorm))
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), ours, flax)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float32])
def test_a_narrow_result_is_that_of_wide_moments(narrow):
    x, weight, params = draw(np.float32)
    params = jax.tree.map(np.float32, params)
    wide = values_and_gradients(Norm(EPSILON), np.float32(jnp.asarray(x, narrow)), weight, params)
    found = values_and_gradients(
        Norm(EPSILON, jnp.bfloat16), jnp.asarray(x, narrow), weight, params
    )
    assert found[0].dtype == jnp.bfloat16 and found[1][0].dtype == narrow
    np.testing.assert_array_equal(found[0], wide[0].astype(jnp.bfloat16))
    for ours, exact in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wide[1]), strict=True):
        assert np.linalg.norm(ours.astype(np.float32) - exact) < 0.01 * np.linalg.norm(exact)


def test_states_that_are_all_alike_stay_finite():
    x = np.repeat(np.random.default_rng(0).normal(0, 1e4, (200, 1)), 8, axis=1).astype(np.float32)
    params = jax.tree.map(np.float32, draw()[2])
    for leaf in jax.tree.leaves(values_and_gradients(Norm(EPSILON), x, np.ones_like(x), params)):
        assert np.isfinite(leaf).all()


def test_one_array_is_kept():
    x, _, params = draw()
    _, pull = jax.vjp(lambda x: Norm(EPSILON).apply(params, x), jnp.asarray(x))
    assert sum(leaf.size >= x.size for leaf in jax.tree.leaves(pull)) == 1
