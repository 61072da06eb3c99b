"""The solvers against scipy's: non-negative least squares, bounded Huber fits, many at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from scaling.analyse.search import HUBER_DELTA, descend, project


@pytest.mark.parametrize("terms", [1, 2])
@pytest.mark.parametrize("floor", [True, False])
def test_projection_is_scipys_non_negative_least_squares(terms, floor):
    rng = np.random.default_rng(terms)
    for _ in range(20):
        basis, y, w = rng.normal(size=(terms, 12)), rng.normal(size=12), rng.uniform(0, 1, 12)
        columns = np.concatenate([[np.ones(12)], basis])
        if not floor:  # a free intercept is the difference of two that are not negative
            columns = np.concatenate([columns, [-np.ones(12)]])
        wanted, norm = optimize.nnls((columns * np.sqrt(w)).T, y * np.sqrt(w))
        if not floor:
            wanted = np.array([wanted[0] - wanted[-1], *wanted[1:-1]])
        with jax.enable_x64(True):
            found, loss = project(jnp.asarray(basis), jnp.asarray(y), jnp.asarray(w), floor)
        assert found == pytest.approx(wanted, abs=1e-9) and loss == pytest.approx(norm**2 / 2)


def test_descent_stops_on_bounds_where_scipys_does():
    x = np.linspace(0, 3, 20)
    y = 2 * np.exp(-1.5 * x) + 0.05 * np.cos(9 * x)
    lower, upper = np.array([0.0, 0.1]), np.array([5.0, 1.2])

    def residuals(z, xp=np):
        return y - z[0] * xp.exp(-z[1] * x)

    wanted = optimize.least_squares(residuals, [1, 1], bounds=(lower, upper), xtol=1e-15)
    with jax.enable_x64(True):
        start, deltas = jnp.array([1.0, 0.5]), jnp.full(30, jnp.inf)
        found, loss = descend(lambda z: residuals(z, jnp), start, lower, upper, deltas)
    found = np.asarray(found)
    assert found[1] == 1.2 and found == pytest.approx(wanted.x, rel=1e-6)
    assert float(loss) == pytest.approx(wanted.cost)


def test_huber_descent_finds_the_median():
    y = np.random.default_rng(0).standard_cauchy(31)
    with jax.enable_x64(True):
        deltas = jnp.maximum(0.3 * 0.75 ** jnp.arange(50), HUBER_DELTA)
        ends = jnp.array([-50.0]), jnp.array([50.0])
        found, _ = descend(lambda z: y - z[0], jnp.array([5.0]), *ends, deltas)
    assert found[0] == pytest.approx(np.median(y), abs=2 * HUBER_DELTA)
