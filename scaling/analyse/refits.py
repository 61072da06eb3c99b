"""Many data sets of one design in; the coefficients of one form fitted to each out, by JAX.

Scores: least squares by variable projection; the exponents are searched, the other coefficients
are non-negative least squares in closed form (Golub & Pereyra 1973). Losses: the summed Huber loss
on logs (Hoffmann et al. 2022; summed, since its mean stopped a famous fit too early: Besiroglu et
al. 2024). Both start from the best points of a grid and go down by Levenberg-Marquardt, reweighted
for Huber, whose delta shrinks as it goes. Everything is float64, on the CPU.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from scaling.analyse.forms import FORMS, bounds, curve
from scaling.analyse.search import HUBER_DELTA, descend, huber, project

CHUNK = 128  # data sets of one program, whatever their number: one compilation of each form
STRATA = 2  # starts, each the best of its part of the grid, beside the one given


def refit(
    form: str, scale: str, columns, targets, near=None, weights=None, limits=None
) -> tuple[np.ndarray, np.ndarray]:
    """Fit B data sets that share their sizes.

    Args:
      columns: (c, n), from `forms.columns_of`.
      targets: scores, or logarithms of losses for scale "log", (B, n).
      near: a point (k,) or one for each data set (B, k) to start from too.
      weights: of the rows, (n,); 0 leaves one out.
      limits: (low, high) of theta, each (p,), in place of the form's own range.
    Returns: points (B, k) float64 as `forms.curve` takes them, and what was minimised (B,): half
      the sum of squares, or the summed Huber loss.
    """
    targets = np.asarray(targets, float)
    count, n = targets.shape
    of = FORMS[form]
    low, high = bounds(form, columns) if limits is None else limits
    weights = np.ones(n) if weights is None else np.asarray(weights, float)
    if form == "constant":
        return _constants(scale, targets, weights)
    floor = scale == "log" or (of.falls and targets[:, weights > 0].min() >= 0)
    if near is None:
        near = np.concatenate([targets.mean() * np.ones(1), np.ones(of.slopes), (low + high) / 2])
    near = np.broadcast_to(near, (count, len(of.names)))
    program, flip = (form, 1.0) if of.falls else ("power", -1.0)  # one compilation for both
    spare = -n % 16  # sizes of arrays repeat, and with them programs
    design = np.pad(columns, ((0, 0), (0, spare)), mode="edge"), np.pad(weights, (0, spare))
    given = *design, low, high, floor
    flipped = np.pad(flip * targets, ((0, -count % CHUNK), (0, spare)), mode="edge")
    near = np.pad(near, ((0, -count % CHUNK), (0, 0)), mode="edge")
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        parts = [
            _refit_chunk(program, scale, flipped[rows], near[rows], *given)
            for rows in (slice(i, i + CHUNK) for i in range(0, len(flipped), CHUNK))
        ]
        points, losses = (np.concatenate(part)[:count] for part in zip(*parts, strict=True))
    points[:, 0] *= flip
    if count == 1 and scale == "log":
        return _polished(form, columns, targets[0], weights, points[0], losses, low, high)
    return points, losses


def _polished(form, columns, target, weights, point, loss, low, high):
    """A lone Huber fit taken to its minimum, which has kinks, by the simplex of scipy."""
    of, kept = FORMS[form], weights > 0
    levels = np.log(np.maximum(point[: 1 + of.slopes], 1e-300))
    least = target[kept].min()
    limits = [(least + np.log(1e-4), least + 50)] * len(levels) + list(zip(low, high, strict=True))

    def objective(z):
        z = np.concatenate([np.exp(z[: 1 + of.slopes]), z[1 + of.slopes :]])
        return huber((target - curve(form, "log", z, columns))[kept], xp=np)

    found = optimize.minimize(
        objective, np.concatenate([levels, point[1 + of.slopes :]]), method="Nelder-Mead",
        bounds=limits, options={"xatol": 1e-10, "fatol": 1e-15, "maxiter": 3000, "maxfev": 3000},
    )  # fmt: skip
    if found.fun >= loss[0]:
        return point[None], loss
    levels = np.exp(found.x[: 1 + of.slopes])
    return np.concatenate([levels, found.x[1 + of.slopes :]])[None], np.array([found.fun])


def _constants(scale, targets, weights):
    """Means, or the middles that the Huber loss finds: convex, so its falling slope is halved."""
    if scale == "raw":
        middle = (targets @ weights / weights.sum())[:, None]
        return middle, 0.5 * ((targets - middle) ** 2 @ weights)
    low, high = targets.min(-1), targets.max(-1)
    for _ in range(60):
        middle = (low + high) / 2
        pull = np.clip(targets - middle[:, None], -HUBER_DELTA, HUBER_DELTA) @ weights
        low, high = np.where(pull > 0, middle, low), np.where(pull > 0, high, middle)
    return np.exp(low)[:, None], huber((targets - low[:, None]) * weights, xp=np)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _refit_chunk(form, scale, targets, near, columns, weights, low, high, floor):
    of = FORMS[form]
    ends = zip(low, high, of.starts, strict=True)
    axes = [jnp.linspace(*end) for end in ends]
    grid = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    design = of, columns, weights, low, high, grid, jnp.exp(of.terms(jnp, grid, columns)), floor
    one = _least_squares if scale == "raw" else _huber
    return jax.vmap(lambda y, start: one(y, start, *design))(targets, near)


def _least_squares(y, near, of, columns, weights, low, high, grid, basis, floor):
    _, losses = jax.vmap(lambda part: project(part, y, weights, floor))(basis)
    starts = jnp.stack([*_best(grid, losses), near[1 + of.slopes :]])

    def residuals(theta):
        terms = jnp.exp(of.terms(jnp, theta, columns))
        coefficients, _ = project(terms, y, weights, floor)
        fitted = coefficients[0] + coefficients[1:] @ terms
        return jnp.sqrt(weights) * (y - fitted)

    none = jnp.full(25, jnp.inf)
    thetas, losses = jax.vmap(lambda start: descend(residuals, start, low, high, none))(starts)
    theta = thetas[losses.argmin()]
    coefficients, _ = project(jnp.exp(of.terms(jnp, theta, columns)), y, weights, floor)
    return jnp.concatenate([coefficients, theta]), losses.min()


def _huber(y, near, of, columns, weights, low, high, grid, basis, floor):
    """Searches (log E, logs of slopes, theta); a grid of relative least squares starts it."""
    least = jnp.where(weights > 0, y, jnp.inf).min()
    level = jnp.exp(y - least)
    shares, losses = jax.vmap(lambda part: project(part, level, weights / level**2, True))(basis)
    of_grid = jnp.concatenate([jnp.log(jnp.maximum(shares, 1e-300)) + least, grid], 1)
    logs = jnp.log(jnp.maximum(near[: 1 + of.slopes], 1e-300))
    given = jnp.concatenate([logs, near[1 + of.slopes :]])
    starts = jnp.stack([*_best(of_grid, losses), given])
    coefficients = jnp.full(1 + of.slopes, least)
    lower = jnp.concatenate([coefficients + jnp.log(1e-4), low])
    upper = jnp.concatenate([coefficients + 50.0, high])

    def residuals(z):
        return jnp.where(weights > 0, y - log_value(of, z, columns), 0.0)

    deltas = jnp.maximum(0.3 * 0.7 ** jnp.arange(40), HUBER_DELTA)
    found, losses = jax.vmap(lambda start: descend(residuals, start, lower, upper, deltas))(
        jnp.clip(starts, lower, upper)
    )
    z = found[losses.argmin()]
    return jnp.concatenate([jnp.exp(z[: 1 + of.slopes]), z[1 + of.slopes :]]), losses.min()


def constrained(
    form: str, scale: str, columns, target, starts, lower, upper
) -> np.ndarray:
    """Least losses (Q,) of one data set under Q sets of bounds; equal bounds fix a coefficient.

    Args:
      columns: (Q, c, n), one design for each set, so that a coefficient can be fixed in the units
        of the sizes.
      target: (n,).
      starts: (Q, S, k) of (intercept, logs of slopes, theta), its intercept as a logarithm on
        scale "log"; lower, upper: bounds of these, (Q, k).
    """
    count, n = len(columns), columns.shape[-1]
    spare, program = -n % 16, form
    if not FORMS[form].falls:  # the same program, upside down
        program, target, starts = "power", -target, starts * np.array([-1, 1, 1])
        lower, upper = lower.copy(), upper.copy()
        lower[:, 0], upper[:, 0] = -upper[:, 0], -lower[:, 0]
    target, weights = np.pad(target, (0, spare), mode="edge"), np.pad(np.ones(n), (0, spare))
    columns = np.pad(columns, ((0, 0), (0, 0), (0, spare)), mode="edge")
    each = [
        np.pad(array, [(0, -count % CHUNK)] + [(0, 0)] * (array.ndim - 1), mode="edge")
        for array in (columns, starts, lower, upper)
    ]
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        losses = [
            _constrained_chunk(program, scale, target, weights, *(array[rows] for array in each))
            for rows in (slice(i, i + CHUNK) for i in range(0, count, CHUNK))
        ]
        return np.concatenate(losses)[:count]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _constrained_chunk(form, scale, target, weights, columns, starts, lower, upper):
    of = FORMS[form]
    last = HUBER_DELTA if scale == "log" else jnp.inf
    deltas = jnp.maximum(jnp.where(scale == "log", 0.3, jnp.inf) * 0.75 ** jnp.arange(50), last)

    def least(columns, starts, lower, upper):
        def residuals(z):
            if scale == "log":
                return weights * (target - log_value(of, z, columns))
            terms = of.terms(jnp, z[1 + of.slopes :], columns) + z[1 : 1 + of.slopes, None]
            return weights * (target - z[0] - jnp.exp(terms).sum(0))

        return jax.vmap(lambda s: descend(residuals, s, lower, upper, deltas)[1])(starts).min()

    return jax.vmap(least)(columns, starts, lower, upper)


def log_value(of, z, columns):
    """Logarithm (n,) of the curve at (log E, logs of slopes, theta) (k,)."""
    terms = of.terms(jnp, z[1 + of.slopes :], columns) + z[1 : 1 + of.slopes, None]
    intercept = jnp.broadcast_to(z[0], (1, columns.shape[1]))
    return jax.nn.logsumexp(jnp.concatenate([intercept, terms]), 0)


def _best(points, losses):
    """The best point of each of `STRATA` contiguous parts of the grid."""
    edges = np.linspace(0, len(losses), STRATA + 1).astype(int)
    parts = [slice(*ends) for ends in itertools.pairwise(edges)]
    return [points[part][losses[part].argmin()] for part in parts]
