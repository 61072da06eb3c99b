"""The loss kernels for Hopper GPUs: interpreted against the reference, and lowered for CUDA.

Hidden states and embedding are rounded to bfloat16 first, for the reference too, so that products
and all that follows are the same numbers in float32: 1e-5. dL/dx is rounded to bfloat16 (2^-9 of
each number at most) before it becomes the gradients by hidden states and embedding, and the former
once more; that by the bias is summed before.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_cab import EXTREMES, KINDS, ONE, draw

from kernels.cab import (
    pallas_gpu,
    pallas_gpu_kernels,
    pallas_gpu_program,
    passes,
    reference,
)
from kernels.cab.shapes import SHAPES

CAB, MLM = ("recalibrated", "cosine"), ("mlm", "none")
EARLY = ("P near 1", "less than the floor left")


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernels on this machine, with so few genes at a time that there are two groups."""
    monkeypatch.setattr(pallas_gpu_program, "INTERPRET", InterpretGPUParams())
    monkeypatch.setattr(pallas_gpu, "GROUP", 128)


def parts(module, kind, hidden, embedding, bias, labels, known):
    """(cross entropy, similarity, top P, top Q) by the kernels or by the reference."""
    arrays, cut = (hidden, embedding, bias, labels), passes.Cut(module, *kind, None)
    if kind != MLM:
        if module is reference:
            return reference.cab(*arrays, known, *kind)
        return passes.cab(cut, *arrays, known)
    nll, top = reference.masked_lm(*arrays) if module is reference else passes.masked_lm(
        cut, *arrays
    )
    return nll, jnp.zeros_like(nll), top, top


@functools.lru_cache
def compiled(module, kind, interpreted: bool):
    """Jitted (loss, its parts), gradients; the kernels' programs differ when interpreted."""

    def loss(*arrays):
        out = parts(module, kind, *arrays)
        return out[0] + 0.7 * out[1], out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def run(module, kind, arrays, single=np.float32):
    """Parts of the loss and gradients; the kernels read bfloat16, others the same numbers."""
    hidden, embedding, bias, labels, known = arrays
    low = [jnp.asarray(a, jnp.bfloat16) for a in (hidden, embedding)]
    interpreted = pallas_gpu_program.INTERPRET is not None
    with jax.enable_x64(single == np.float64):
        if module is not pallas_gpu:
            low = [a.astype(single) for a in low]
        ids = labels.astype(np.int32)
        (_, out), grads = compiled(module, kind, interpreted)(*low, bias.astype(single), ids, known)
        return jax.device_get(out), [np.asarray(g, np.float64) for g in grads]


def seen_through(arrays, added=0.0):
    """The arrays, with one more hidden dimension for each gene: there dL/dh is dL/dx itself."""
    hidden, embedding, *others = arrays
    shape = *hidden.shape[:2], len(embedding)
    away = added * np.random.default_rng(0).normal(size=shape)
    eye = np.eye(len(embedding))
    return [np.concatenate([hidden, away], -1), np.concatenate([embedding, eye], -1), *others]


def assert_close(found, wanted, labels):
    (out, (d_hidden, d_embedding, d_bias)), (out_wanted, grads_wanted) = found, wanted
    for value, value_wanted in zip(out[:2], out_wanted[:2], strict=True):
        np.testing.assert_allclose(value, value_wanted, 1e-5, 1e-6)
    real = labels >= 0
    for top, top_wanted in zip(out[2:], out_wanted[2:], strict=True):
        np.testing.assert_array_equal(top[real], top_wanted[real])
    for grad, want, tolerance in zip(
        (d_bias, d_hidden, d_embedding), (grads_wanted[2], *grads_wanted[:2]),
        (1e-5, 2**-8, 2**-8), strict=True,
    ):
        assert np.linalg.norm(grad - want) <= tolerance * max(np.linalg.norm(want), 1e-3)
    assert (d_hidden[~real] == 0).all()


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != CAB)) for k in KINDS] + [MLM]
)
def test_values_and_gradients_are_those_of_the_reference(kind, interpreted):
    arrays = seen_through(draw(**ONE), added=1.0)
    found, wanted = run(pallas_gpu, kind, arrays), run(reference, kind, arrays)
    assert_close(found, wanted, arrays[3])
    d_logits, d_logits_wanted = (grads[0][..., ONE["D"] :] for _, grads in (found, wanted))
    least = 1e-6 * abs(d_logits_wanted).max()
    np.testing.assert_allclose(d_logits, d_logits_wanted, 2**-8, least)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 70, 100, 6),  # a second tile, of six slots
        pytest.param((1, 3, 2, 1), marks=pytest.mark.slow),  # hardly anything
        pytest.param((2, 64, 128, 64), marks=pytest.mark.slow),  # nothing to fill up
        pytest.param((2, 150, 300, 130), marks=pytest.mark.slow),  # three of all
    ],
)
def test_shapes(shape, interpreted):
    arrays = draw(*shape, scale=shape[-1] ** -0.5)
    assert_close(run(pallas_gpu, CAB, arrays), run(reference, CAB, arrays), arrays[3])


@pytest.mark.parametrize(
    "variant", ["recalibrated", pytest.param("plain", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "extreme",
    [pytest.param(e, marks=[pytest.mark.slow] * (e not in EARLY)) for e in EXTREMES],
)
def test_extremes(extreme, variant, interpreted):
    arrays = draw(**ONE)
    EXTREMES[extreme](arrays)
    arrays, kind = seen_through(arrays), (variant, "cosine")
    out, grads = run(pallas_gpu, kind, arrays)
    wanted, grads_wanted = run(reference, kind, arrays, np.float64)
    np.testing.assert_allclose(out[0], wanted[0], 1e-5, 1e-6)
    np.testing.assert_allclose(out[1], wanted[1], 1e-5, 1e-5)
    assert all(np.isfinite(g).all() for g in grads)
    # Where one gene is left the gradient is 0, as the difference of numbers up to 1.
    least = 0.1 if extreme == "one gene unknown" else 1e-3
    for which, tolerance in ((2, 1e-5), (1, 2**-8)):
        grad, want = grads[which], grads_wanted[which]
        assert np.linalg.norm(grad - want) <= tolerance * max(np.linalg.norm(want), least)


def test_a_part_of_the_vocabulary(interpreted):
    """Pass by pass, genes 150 to 299 of 450: what belongs to other devices counts for nothing.

    None of the first 128 can be predicted: a whole program without a finite logit.
    """
    hidden, embedding, bias, labels, known = draw(**{**ONE, "V": 450})
    bias[150:278] = -np.inf
    low = [jnp.asarray(a, jnp.bfloat16) for a in (hidden, embedding[150:300])]
    others = [jnp.asarray(bias[150:300], jnp.float32), jnp.asarray(labels, jnp.int32)]
    rng = np.random.default_rng(1)
    numbers = [jnp.asarray(rng.random(labels.shape), jnp.float32) for _ in passes.Rows._fields[2:]]
    top = jnp.asarray(rng.integers(0, 450, labels.shape), jnp.int32)
    rows = passes.Rows(others[1], top, *numbers)._replace(peak=numbers[0] + 12)
    sums = numbers[:2]

    @functools.partial(jax.jit, static_argnums=0)
    def all_passes(module, first, hidden, embedding):
        arrays = hidden, embedding, *others, first
        known_here = jnp.asarray(known[:, 150:300])
        return (
            module.softmax(*arrays),
            module.assignment(*arrays, known_here, rows, gram=True),
            module.weights(*arrays, known_here, rows, similarity="cosine"),
            module.gradients(*arrays, known_here, rows, *sums, similarity="cosine")[2],
        )

    found = all_passes(pallas_gpu, 150, *low)
    wanted = literal_passes(150, *low, *others, known[:, 150:300], rows, *sums)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        b = np.maximum(b, pallas_gpu_kernels.LOWEST)
        np.testing.assert_allclose(a, b, 1e-5, 1e-5 * abs(b[b > pallas_gpu_kernels.LOWEST]).max())


def literal_passes(first, hidden, embedding, bias, labels, known, rows, at_top, elsewhere):
    """What `passes` says that each leaves, and the gradient by the bias, in float64."""
    hidden, embedding, bias = (np.asarray(a, np.float64) for a in (hidden, embedding, bias))
    rows = passes.Rows(*(np.asarray(a)[..., None] for a in rows))
    genes, x = first + np.arange(len(bias)), hidden @ embedding.T + bias
    is_top, is_label = rows.top == genes, rows.label == genes
    highest = x == x.max(-1, keepdims=True)
    rest = np.where(highest, 0, np.exp(x - x.max(-1, keepdims=True))).sum(-1)
    softmax = first + highest.argmax(-1), x.max(-1), rest, np.where(is_label, x, 0).sum(-1)
    P = np.exp(x - rows.peak) * rows.inverse
    u = np.where(is_top, rows.left, 1 - P)
    before = np.concatenate([np.ones_like(u[:, :1]), u[:, :-1].cumprod(1)], 1)
    q = P * ~known[:, None] * before
    scaled = q / np.maximum(q.max(-1, keepdims=True), passes.SMALLEST)
    assigned = (
        np.where(is_label, q, 0).sum(-1), np.where(is_label, 0, q).sum(-1), q.max(-1),
        first + q.argmax(-1), np.einsum("biv,bjv->bij", scaled, scaled),
    )
    row = q * rows.scale
    others = row.sum(1, keepdims=True) - row - rows.along * row
    w = np.where(is_label, rows.at_label, q * rows.beside) + rows.weight * row * others
    later = w[:, ::-1].cumsum(1)[:, ::-1] - w
    s = P / u * later
    weights = np.where(is_top, s, 0).sum(-1), np.where(is_top, 0, s).sum(-1)
    at_top, elsewhere = (np.asarray(a)[..., None] for a in (at_top, elsewhere))
    through = np.where(is_top, later, later / u - at_top) - elsewhere
    d = w - P * (rows.sum_w + through) + rows.on_p * np.where(is_label, -u, P)
    return softmax, assigned, weights, d.sum((0, 1))


def test_what_the_kernels_cannot_do_is_refused(monkeypatch):
    def refused(message, M=7, dtype=jnp.bfloat16):
        arrays = [jax.ShapeDtypeStruct(s, d) for s, d in (
            ((1, M, 6), dtype), ((150, 6), jnp.float32), ((150,), jnp.float32),
            ((1, M), jnp.int32), ((1, 150), bool),
        )]
        for kind in (CAB, MLM):
            with pytest.raises(NotImplementedError, match=f"{message}.*implementation='blocked'"):
                jax.eval_shape(functools.partial(parts, pallas_gpu, kind), *arrays)

    refused("bfloat16 hidden states, got float32", dtype=jnp.float32)
    refused("bfloat16 hidden states, got float16", dtype=jnp.float16)
    refused("at most 4096 masked slots of a cell, got 4097", M=4097)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capability in ("8.0", "10.0"):
        device = type("Device", (), {"compute_capability": capability})
        monkeypatch.setattr(jax, "devices", lambda device=device: [device])
        refused(f"capability 9.0, got {capability}")


def test_nothing_runs_in_their_place_on_other_machines():
    with pytest.raises(ValueError, match="interpret mode"):
        run(pallas_gpu, MLM, draw(**ONE))


def _lowered(kind, shape, cells) -> str:
    """The program for CUDA: the kernels down to their instructions' dialect, the rest StableHLO."""
    arrays = [jax.ShapeDtypeStruct(s, d) for s, d in (
        ((cells, shape.M, shape.D), jnp.bfloat16), ((shape.V, shape.D), jnp.float32),
        ((shape.V,), jnp.float32), ((cells, shape.M), jnp.int32), ((cells, shape.V), bool),
    )]
    traced = compiled(pallas_gpu, kind, False).trace(*arrays)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("name", "kind", "kernels"),
    [
        ("gf-v1-10m", CAB, 4),
        ("gf-v1-10m", MLM, 2),
        pytest.param("gf-v2-316m", CAB, 4, marks=pytest.mark.slow),
    ],
)
def test_the_program_for_cuda_holds_no_array_over_slots_and_vocabulary(name, kind, kernels):
    shape, cells = SHAPES[name], 8
    program = _lowered(kind, shape, cells)
    assert program.count("@mosaic_gpu_v2") == kernels
    shapes = re.findall(r"tensor<([\dx]+)x\w+>", program)
    sizes = [np.prod([int(n) for n in found.split("x")]) for found in shapes]
    padded_embedding = (shape.V + pallas_gpu.GROUP) * (shape.D + 63)
    most = max(cells * shape.M * pallas_gpu.GROUP, padded_embedding)
    assert shape.V * shape.D <= max(sizes) <= most < cells * shape.M * shape.V / 4


def test_lowers_inside_shard_map_and_vmap():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    arrays = [jnp.asarray(a) for a in draw(4, 3, 1200, 4)]
    arrays[:3] = (a.astype(t) for a, t in zip(
        arrays[:3], (jnp.bfloat16, jnp.float32, jnp.float32), strict=True
    ))

    def loss(axis, *arrays):
        out = passes.cab(passes.Cut(pallas_gpu, *CAB, axis), *arrays)
        return out[0] + out[1]

    def vary(array, axes):
        return jax.lax.pcast(array, axes, to="varying")

    def cut(hidden, embedding, bias, labels, known):
        embedding, bias = vary(embedding, ("data",)), vary(bias, ("data",))
        return jax.grad(functools.partial(loss, "model"), 0)(
            hidden, embedding, bias, labels, known
        )

    sharded = jax.shard_map(
        cut, mesh=mesh, out_specs=P("data"),
        in_specs=(P("data"), P("model"), P("model"), P("data"), P("data", "model")),
    )
    by_cell = jax.vmap(
        lambda h, y, k: loss(None, h[None], *arrays[1:3], y[None], k[None])
    )
    for program in (
        jax.jit(sharded).trace(*arrays), jax.jit(by_cell).trace(arrays[0], *arrays[3:])
    ):
        assert "@mosaic_gpu_v2" in program.lower(lowering_platforms=("cuda",)).as_text()
