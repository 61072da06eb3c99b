"""The loss kernels for TPU: interpreted against the reference, and compiled ahead of time."""

import functools
import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_cab import EXTREMES, KINDS, ONE, assert_close, draw

from kernels.cab import pallas_tpu, passes, reference
from kernels.cab.shapes import SHAPES

CAB = ("recalibrated", "cosine")
LATE = [("recalibrated", "dot"), ("plain", "dot"), ("plain", "none")]


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Runs kernels on this machine, with blocks so small that these shapes have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pallas_tpu, "INTERPRET", True)
        patch.setattr(pallas_tpu, "BLOCK", 128)
        yield


def parts(module, variant, similarity, axis, hidden, embedding, bias, labels, known):
    """(cross entropy, similarity, top P, top Q) by the kernels or by the reference."""
    cut, arrays = passes.Cut(module, variant, similarity, axis), (hidden, embedding, bias, labels)
    if variant != "mlm":
        if module is reference:
            return reference.cab(*arrays, known, variant, similarity)
        return passes.cab(cut, *arrays, known)
    masked_lm = reference.masked_lm if module is reference else functools.partial(
        passes.masked_lm, cut
    )
    nll, top = masked_lm(*arrays)
    return nll, jnp.zeros_like(nll), top, top


@functools.lru_cache
def compiled(module, variant, similarity):
    def loss(*arrays):
        out = parts(module, variant, similarity, None, *arrays)
        return out[0] + 0.7 * out[1], out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def single(arrays):
    return [a.astype(np.float32) if a.dtype == np.float64 else a for a in arrays]


def run(module, kind, arrays, dtype=np.float32):
    """Parts of the loss and gradients, as `test_cab.assert_close` wants them."""
    arrays = [a.astype(dtype) if a.dtype == np.float64 else a for a in arrays]
    with jax.enable_x64(dtype == np.float64):
        (_, out), grads = compiled(module, *kind)(*arrays)
        return named(jax.device_get(out)), jax.device_get(grads)


def named(out):
    nll, similarity, top_p, top_q = out
    return types.SimpleNamespace(
        cross_entropy=nll, similarity=similarity, positions=0, pairs=0, top_p=top_p, top_q=top_q
    )


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] * (k in LATE)) for k in [*KINDS, ("mlm", "none")]],
)
def test_values_and_gradients_are_those_of_the_reference(kind):
    arrays = draw(**ONE)
    found, wanted = run(pallas_tpu, kind, arrays), run(reference, kind, arrays)
    assert_close(found, wanted, 1e-5)
    real = arrays[3] >= 0
    for name in ("top_p", "top_q"):
        np.testing.assert_array_equal(getattr(found[0], name)[real], getattr(wanted[0], name)[real])
    assert (found[1][0][~real] == 0).all() and (found[1][0][real] != 0).any()


@pytest.mark.parametrize("variant", ["recalibrated", "plain"])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes(extreme, variant):
    arrays = draw(**ONE)
    EXTREMES[extreme](arrays)
    wanted = run(reference, (variant, "cosine"), arrays, np.float64)
    out, grads = run(pallas_tpu, (variant, "cosine"), arrays)
    if (extreme, variant) == ("one gene unknown", "recalibrated"):
        # Every Q is that gene: no gradient, but the roundings of summands as large as 5.
        assert all(np.linalg.norm(grad.ravel()) < 1e-5 for grad in grads)
        grads = wanted[1]
    assert_close((out, grads), wanted, 1e-5)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ({"B": 2, "M": 21, "V": 60, "D": 3}, CAB),
        pytest.param({"B": 1, "M": 1, "V": 128, "D": 1}, CAB, marks=pytest.mark.slow),
        pytest.param({"B": 2, "M": 13, "V": 384, "D": 130}, CAB, marks=pytest.mark.slow),
        pytest.param({"B": 2, "M": 140, "V": 150, "D": 6}, CAB, marks=pytest.mark.slow),
        pytest.param({"B": 2, "M": 13, "V": 300, "D": 6}, ("mlm", "none"), marks=pytest.mark.slow),
    ],
)
def test_sizes_need_not_be_multiples(shape, kind):
    """Three groups of slots and few genes; one slot; a Gram matrix of two strips."""
    arrays = draw(**shape)
    arrays[0] /= np.sqrt(shape["D"])
    assert_close(run(pallas_tpu, kind, arrays), run(reference, kind, arrays), 1e-5)


def test_slots_that_fill_a_group_count_for_nothing():
    """Their logits are the biases alone, and exp(100) is infinite in float32."""
    arrays = draw(**ONE)
    arrays[2] += 100
    wanted = run(reference, CAB, arrays, np.float64)
    assert_close(run(pallas_tpu, CAB, arrays), wanted, 1e-4)


@pytest.mark.slow
@settings(max_examples=6, derandomize=True)
@given(
    st.integers(1, 3), st.integers(1, 20), st.integers(2, 300), st.integers(1, 5),
    st.sampled_from(KINDS), st.integers(0, 99),
)
def test_drawn_shapes(B, M, V, D, kind, seed):
    arrays = draw(B, M, V, D, seed)
    assert_close(run(pallas_tpu, kind, arrays), run(reference, kind, arrays, np.float64), 1e-5)


@pytest.mark.parametrize(
    "embedding_type", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)]
)
def test_bfloat16_states_accumulate_in_float32(embedding_type):
    arrays = single(draw(2, 7, 150, 64))
    arrays[:2] = arrays[0].astype(jnp.bfloat16), arrays[1].astype(jnp.bfloat16) / 8
    # The reference on the same numbers; operands are bfloat16, so the embedding is rounded to it.
    wanted = run(reference, CAB, [np.asarray(a, np.float32) for a in arrays[:2]] + arrays[2:])
    arrays[1] = arrays[1].astype(embedding_type)
    (out, grads) = run(pallas_tpu, CAB, arrays)
    assert [g.dtype for g in grads] == [jnp.bfloat16, embedding_type, jnp.float32]
    assert out.cross_entropy.dtype == out.similarity.dtype == jnp.float32
    np.testing.assert_allclose(out.cross_entropy, wanted[0].cross_entropy, 1e-6)
    np.testing.assert_allclose(out.similarity, wanted[0].similarity, 1e-5)
    for grad, want in zip(grads, wanted[1], strict=True):
        error = np.linalg.norm((grad.astype(np.float32) - want).ravel())
        assert error < 0.01 * np.linalg.norm(want.ravel())


@pytest.mark.parametrize("kind", [CAB, pytest.param(("mlm", "none"), marks=pytest.mark.slow)])
def test_cells_over_devices_and_a_vocabulary_cut_in_two(kind):
    arrays = single(draw(4, 7, 400, 6))
    wanted = run(reference, kind, arrays)
    mesh = jax.make_mesh((2, 2), ("data", "genes"), axis_types=(AxisType.Auto,) * 2)

    def local(*arrays):
        def loss(*arrays):
            out = parts(pallas_tpu, *kind, "genes", *arrays)
            return out[0] + 0.7 * out[1], out

        (_, (nll, similarity, *tops)), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
            *arrays
        )
        total = jax.lax.psum((nll, similarity, *grads[1:]), "data")
        return (*total[:2], *tops), (grads[0], *total[2:])

    rows, genes = P("data"), P("genes")
    # jax interprets no kernel where check_vma is on; compiled ahead of time below, it is.
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(rows, genes, genes, rows, P("data", "genes")),
        out_specs=((P(), P(), rows, rows), (rows, genes, genes)), check_vma=False,
    )
    out, grads = jax.device_get(jax.jit(sharded)(*arrays))
    found = named(out), grads
    assert_close(found, wanted, 1e-5)
    real = arrays[3] >= 0
    np.testing.assert_array_equal(found[0].top_q[real], wanted[0].top_q[real])


@pytest.mark.slow
def test_vmap_gives_the_same():
    arrays = single(draw(**ONE))
    hidden, embedding, bias, labels, known = arrays

    def of_cell(hidden, labels, known):
        cell = hidden[None], embedding, bias, labels[None], known[None]
        one = parts(pallas_tpu, *CAB, None, *cell)
        return one[0], one[1]

    found = jax.jit(jax.vmap(of_cell))(hidden, labels, known)
    wanted = run(reference, CAB, arrays)[0]
    np.testing.assert_allclose(found[0].sum(), wanted.cross_entropy, 1e-5)
    np.testing.assert_allclose(found[1].sum(), wanted.similarity, 1e-5)


def test_the_kernels_run_and_no_array_spans_slots_and_vocabulary():
    arrays = single(draw(3, 8, 256, 6))
    program = str(jax.make_jaxpr(compiled(pallas_tpu, *CAB))(*arrays))
    assert program.count("pallas_call") == 5
    assert "[3,8,256]" not in program and "[8,256]" not in program
    # No machine but a TPU rounds operands, so no value here would tell.
    products = 5 + 1 + 2  # logits, the Gram matrix, two gradients
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") >= products
    assert "precision=(Precision.DEFAULT" not in program


def test_what_kernels_cannot_do_is_refused(monkeypatch):
    def trace(B=1, M=8, V=256, D=128, dtype=jnp.float32, embedding=jnp.float32):
        def of(shape, dtype):
            return jax.ShapeDtypeStruct(shape, dtype)

        arrays = of((B, M, D), dtype), of((V, D), embedding), of((V,), jnp.float32)
        cab = functools.partial(parts, pallas_tpu, *CAB, None)
        return jax.eval_shape(cab, *arrays, of((B, M), jnp.int32), of((B, V), bool))

    remedy = "use implementation='blocked'"
    with pytest.raises(NotImplementedError, match=f"hidden is float16.*{remedy}"):
        trace(dtype=jnp.float16)
    with pytest.raises(NotImplementedError, match=f"embedding is float16.*{remedy}"):
        trace(embedding=jnp.float16)
    with pytest.raises(NotImplementedError, match=f"4096 slots of width 1152 do not.*{remedy}"):
        trace(M=4096, D=1152)
    with pytest.raises(NotImplementedError, match=f"genes; kernels for TPU count.*{remedy}"):
        trace(V=2**24 + 1)
    assert trace()[2].shape == (1, 8)
    monkeypatch.setattr(pallas_tpu, "INTERPRET", False)
    with pytest.raises(ValueError, match="interpret mode"):
        jax.jit(functools.partial(parts, pallas_tpu, *CAB, None))(*single(draw(1, 3, 150, 5)))


AHEAD_OF_TIME = """
import re
import sys
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from kernels.cab import pallas_tpu, passes

topology, variant, dtype, *sizes = sys.argv[1:]
M, V, D = map(int, sizes)
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
rows, every = PartitionSpec("data"), PartitionSpec()

def loss(*arrays):
    def local(hidden, embedding, bias, labels, known):
        embedding, bias = jax.lax.pcast((embedding, bias), "data", to="varying")
        cut = passes.Cut(pallas_tpu, variant, "cosine", None)
        found = passes.cab(cut, hidden, embedding, bias, labels, known)
        return jax.lax.psum(found[0] + found[1], "data")
    return jax.shard_map(
        local, mesh=mesh, in_specs=(rows, every, every, rows, rows), out_specs=every
    )(*arrays)

def array(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

B = 2 * len(devices)
arrays = (
    array((B, M, D), dtype, rows), array((V, D), jnp.float32, every),
    array((V,), jnp.float32, every), array((B, M), jnp.int32, rows), array((B, V), bool, rows),
)
both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
program = both.trace(*arrays).lower(lowering_platforms=("tpu",)).compile()
text = program.as_text()
shapes = re.findall(r"\\b(?:pred|[suf]\\d+|bf16)\\[([\\d,]+)\\]", text)
print(text.count('custom_call_target="tpu_custom_call"'))
print(sum({str(M), str(V)} <= set(shape.split(",")) for shape in shapes))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler (libtpu) is not installed"
)
@pytest.mark.parametrize(
    ("topology", "shape"),
    [
        ("v5e:2x4", "quickstart"),
        *(
            pytest.param(topology, shape, marks=pytest.mark.slow)
            for topology in ("v5e:2x4", "v5p:2x2x2", "v6e:2x4") for shape in SHAPES
        ),
    ],
)
def test_they_compile_for_tpu_without_one(topology, shape):
    _, M, _, V, D = SHAPES[shape]
    for variant, dtype in (("recalibrated", "float32"), ("plain", "bfloat16")):
        arguments = topology, variant, dtype, M, V, D
        done = subprocess.run(
            [sys.executable, "-c", AHEAD_OF_TIME, *map(str, arguments)],
            cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True,
            # In a process of its own: the compiler changes the one that loads it.
            env=os.environ | {
                "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
                "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
            },
        )
        assert done.returncode == 0, done.stderr[-3000:]
        kernels, over_slots_and_genes = map(int, done.stdout.split()[-2:])
        assert (kernels, over_slots_and_genes) == (5, 0)
