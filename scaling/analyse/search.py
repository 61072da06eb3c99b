"""A residual function, or one linear problem, in; its least Huber or squared loss out, by JAX.

Arrays are float64 where the caller has enabled it; everything can be mapped over many problems.
"""

import itertools

import jax
import jax.numpy as jnp

HUBER_DELTA = 1e-3


def project(basis, y, weights, floor):
    """Weighted least squares of y (n,) on 1 and basis (m, n), slopes and, with `floor`, intercept
    non-negative: the best feasible solution over the sets of coefficients held at 0.

    Returns: coefficients (1 + m,) and half the weighted sum of squares.
    """
    m, total = len(basis), weights.sum()
    found, losses = [], []
    for free in (1.0, 0.0):
        centres = free * (basis @ weights) / total
        level = free * (y @ weights) / total
        centred, rest = basis - centres[:, None], y - level
        gram, cross = (centred * weights) @ centred.T, (centred * weights) @ rest
        for kept in itertools.product((False, True), repeat=m):
            slopes = _masked_solve(gram, cross, kept)
            intercept = level - slopes @ centres
            loss = 0.5 * (weights * (rest - slopes @ centred) ** 2).sum()
            fits = (slopes >= 0).all() & jnp.where(floor, intercept >= 0, free > 0)
            found.append(jnp.concatenate([intercept[None], slopes]))
            losses.append(jnp.where(fits, loss, jnp.inf))
    losses = jnp.stack(losses)
    best = losses.argmin()
    return jnp.stack(found)[best], losses[best]


def _masked_solve(gram, cross, kept):
    slopes = jnp.zeros(len(kept))
    chosen = [i for i, keep in enumerate(kept) if keep]
    if len(chosen) == 1:
        i = chosen[0]
        slopes = slopes.at[i].set(cross[i] / jnp.maximum(gram[i, i], 1e-200))
    elif len(chosen) == 2:
        determinant = jnp.maximum(gram[0, 0] * gram[1, 1] - gram[0, 1] ** 2, 1e-200)
        first = gram[1, 1] * cross[0] - gram[0, 1] * cross[1]
        second = gram[0, 0] * cross[1] - gram[0, 1] * cross[0]
        slopes = jnp.stack([first, second]) / determinant
    return slopes


def descend(residuals, start, lower, upper, deltas):
    """Levenberg-Marquardt within bounds for a Huber loss of falling delta (inf: half squares).

    A coordinate on its bound that wants to leave it is held, as in Bertsekas (1982). Reweighting
    is safe and slow at the kinks of a small delta, Newton's own curvature quick: they take turns.
    Returns: the point (k,) and its loss at the last delta.
    """

    def step(carry, now):
        (z, damping), (turn, delta) = carry, now
        jacobian, residual = jax.jacfwd(lambda at: (residuals(at),) * 2, has_aux=True)(z)
        weight = 1 / jnp.maximum(jnp.abs(residual) / delta, 1.0)
        gradient = jacobian.T @ (weight * residual)
        held = ((z <= lower) & (gradient > 0)) | ((z >= upper) & (gradient < 0))
        curved = jnp.where(turn % 2 == 0, weight, (weight >= 1) + 1e-3 * weight)
        normal = jnp.where(held[:, None] | held, 0.0, (jacobian.T * curved) @ jacobian)
        diagonal = jnp.diag(normal)
        normal += jnp.diag(damping * diagonal + jnp.where(held | (diagonal < 1e-30), 1.0, 0.0))
        trial = jnp.clip(z - _solve(normal, jnp.where(held, 0.0, gradient)), lower, upper)
        better = huber(residuals(trial), delta) < huber(residual, delta)
        damping = jnp.clip(jnp.where(better, damping / 5, damping * 4), 1e-12, 1e12)
        return (jnp.where(better, trial, z), damping), None

    turns = jnp.arange(len(deltas)), deltas
    (z, _), _ = jax.lax.scan(step, (jnp.clip(start, lower, upper), 1e-3), turns)
    return z, huber(residuals(z), deltas[-1])


def _solve(matrix, vector):
    """Gauss without pivots: a LAPACK call for each small matrix would cost more."""
    both = jnp.concatenate([matrix, vector[:, None]], 1)

    def eliminate(i, both):
        pivot = both[i] / both[i, i]
        return (both - both[:, i, None] * pivot).at[i].set(pivot)

    return jax.lax.fori_loop(0, len(vector), eliminate, both)[:, -1]


def huber(residual, delta=HUBER_DELTA, xp=jnp):
    """Summed Huber loss over the last axis; half the sum of squares where delta is infinite."""
    size = xp.abs(residual)
    inside = xp.minimum(size, delta)
    return (inside * (size - inside / 2)).sum(-1)
