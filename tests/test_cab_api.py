"""The loss kernels' programs: which one ran, what it holds, transformations, what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from test_cab import ONE, compiled, draw

from kernels.cab import api, blocked, cab_loss, masked_lm_loss


def test_bfloat16_states_accumulate_in_float32():
    hidden, embedding, bias, labels, known = [jnp.asarray(a) for a in draw(2, 7, 70, 64)]
    low, wide = hidden.astype(jnp.bfloat16), hidden.astype(jnp.bfloat16).astype(jnp.float32)
    both = compiled("blocked", "recalibrated", "cosine")
    (_, out), grads = both(low, embedding / 8, bias, labels, known)
    (_, wanted), grads_wanted = both(wide, embedding / 8, bias, labels, known)
    assert out.cross_entropy.dtype == out.similarity.dtype == jnp.float32
    np.testing.assert_allclose(out.cross_entropy, wanted.cross_entropy, 1e-6)
    np.testing.assert_allclose(out.similarity, wanted.similarity, 1e-5)
    assert [g.dtype for g in grads] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for grad, want in zip(grads, grads_wanted, strict=True):
        assert jnp.linalg.norm((grad - want).ravel()) < 0.01 * jnp.linalg.norm(want.ravel())


def test_vmap_gives_the_same():
    arrays = [jnp.asarray(a, jnp.float32) if a.dtype == float else a for a in draw(8, 3, 70, 4)]

    def parts(*arrays):
        return jnp.stack(cab_loss(*arrays)[:4])

    one_by_one = jax.vmap(lambda h, y, k: parts(h[None], *arrays[1:3], y[None], k[None]))
    summed = jax.jit(one_by_one)(arrays[0], *arrays[3:]).sum(0)
    np.testing.assert_allclose(summed, jax.jit(parts)(*arrays), 1e-5)


def _both_losses(hidden, embedding, bias, labels, known, axis=None):
    """CAB and the plain loss added up, and the predicted genes."""
    cab = cab_loss(hidden, embedding, bias, labels, known, vocabulary_axis=axis)
    plain = masked_lm_loss(hidden, embedding, bias, labels, vocabulary_axis=axis)
    value = cab.cross_entropy + 0.7 * cab.similarity + 0.3 * plain.cross_entropy
    return value, jnp.stack([cab.top_p_BxM, cab.top_q_BxM, plain.top_p_BxM], -1)


@pytest.mark.parametrize(
    ("axes", "sizes"), [(("data",), (8,)), (("data", "genes"), (2, 4)), (("genes",), (8,))]
)
def test_shard_map_over_cells_and_vocabulary_gives_the_same(axes, sizes):
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes))
    cells, genes = ("data" if "data" in axes else None), ("genes" if "genes" in axes else None)

    def local(*arrays):
        value, tops = _both_losses(*arrays, axis=genes)
        return (jax.lax.psum(value, cells) if cells else value), tops

    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(cells), P(genes), P(genes), P(cells), P(cells, genes)),
        out_specs=(P(), P(cells)),
    )
    with jax.enable_x64(True):
        arrays = draw(8, 5, 160, 4)
        arrays[4][:, 40:60] = False  # P and Q of a part of the genes are the highest in no cell
        arrays[2][40:60] -= 9.0
        arrays = [jnp.asarray(a) for a in arrays]
        of = [jax.jit(jax.value_and_grad(f, (0, 1, 2), True)) for f in (sharded, _both_losses)]
        ((value, tops), grads), ((wanted, tops_wanted), grads_wanted) = (f(*arrays) for f in of)
        np.testing.assert_allclose(value, wanted, 1e-12)
        np.testing.assert_array_equal(tops, tops_wanted)
        for grad, want in zip(grads, grads_wanted, strict=True):
            np.testing.assert_allclose(grad, want, 1e-9, 1e-12)


def test_what_fills_the_blocks_of_a_part_is_no_gene_of_the_next(monkeypatch):
    """150 genes of a device in blocks of 64: the last is filled with 42 that are none."""
    monkeypatch.setattr(blocked, "BLOCK", 64)
    mesh = jax.make_mesh((2,), ("genes",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def value(*arrays, axis=None):
        return masked_lm_loss(*arrays, vocabulary_axis=axis).cross_entropy

    sharded = jax.shard_map(
        lambda *a: value(*a, axis="genes"), mesh=mesh, out_specs=P(),
        in_specs=(P(), P("genes"), P("genes"), P()),
    )
    with jax.enable_x64(True):
        arrays = draw(2, 9, 300, 4)[:4]
        arrays[3][0] = np.arange(148, 157)
        found, wanted = (
            jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arrays) for f in (sharded, value)
        )
        np.testing.assert_allclose(found[0], wanted[0], 1e-12)
        for grad, want in zip(found[1], wanted[1], strict=True):
            np.testing.assert_allclose(grad, want, 1e-9, 1e-12)


def test_a_vocabulary_that_is_not_cut_is_refused():
    arrays = [jnp.asarray(a, jnp.float32) if a.dtype == float else a for a in draw(8, 3, 72, 4)]
    mesh = jax.make_mesh((8,), ("genes",), axis_types=(AxisType.Auto,))
    every = jax.shard_map(
        lambda *a: _both_losses(*a, axis="genes")[0], mesh=mesh, in_specs=(P(),) * 5, out_specs=P()
    )
    with pytest.raises(ValueError, match="not cut along 'genes'"):
        every(*arrays)
    whole = jax.shard_map(
        lambda *a: cab_loss(*a, implementation="reference", vocabulary_axis="genes")[0], mesh=mesh,
        in_specs=(P(), P("genes"), P("genes"), P(), P(None, "genes")), out_specs=P(),
    )
    with pytest.raises(NotImplementedError, match="whole vocabulary"):
        whole(*arrays)


def _largest(implementation, kind, *, gradient: bool) -> int:
    """Elements of the largest array in the compiled program."""
    arrays = [a.astype(np.float32) if a.dtype == float else a for a in draw(2, 128, 1500, 4)]
    both = compiled(implementation, *kind)

    def forward(*arrays):
        return both(*arrays)[0]

    program = (both if gradient else jax.jit(forward)).lower(*arrays).compile().as_text()
    shapes = re.findall(r"\b(?:pred|[sufb]\w*\d+)\[([\d,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@pytest.mark.parametrize("kind", [("recalibrated", "cosine"), ("mlm", "none")])
def test_blocked_holds_no_array_over_slots_and_vocabulary(kind):
    BxMxV = 2 * 128 * 1500
    assert _largest("reference", kind, gradient=False) >= BxMxV
    # The largest there is: of the masked language model an array over the slots and a block of 512
    # genes, of CAB one over an eighth of the slots and all genes.
    least, most = (2 * 128 * 500, 2 * 128 * 512) if kind[0] == "mlm" else (BxMxV // 8, BxMxV // 8)
    for gradient in (False, True):
        assert least <= _largest("blocked", kind, gradient=gradient) <= most


def test_the_default_is_blocked_and_a_name_is_obeyed(monkeypatch):
    arrays = draw(**ONE)

    def program(**named):
        return str(jax.make_jaxpr(lambda *a: cab_loss(*a, **named))(*arrays))

    assert program() == program(implementation="blocked") != program(implementation="reference")
    assert "f32[3,7,150]" in program(implementation="reference")
    assert "pallas_call" not in program() and "name=cab_softmax" in program(
        implementation="pallas_tpu"
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert program() == program(implementation="pallas_tpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert program() == program(implementation="blocked")
    for name in ("pallas", "Blocked", ""):
        with pytest.raises(ValueError, match="there are .*blocked.*reference"):
            cab_loss(*arrays, implementation=name)
        with pytest.raises(ValueError, match="there are .*blocked.*reference"):
            masked_lm_loss(*arrays[:4], implementation=name)


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
def test_a_kernel_does_not_fall_back_on_a_machine_that_is_not_its_own(name):
    hidden, *rest = draw(**ONE)
    arrays = jnp.asarray(hidden, jnp.bfloat16), *rest
    with pytest.raises(ValueError, match="(?i)interpret"):
        jax.block_until_ready(cab_loss(*arrays, implementation=name))


def test_the_mesh_in_use_names_the_platform():
    """A program may be compiled for devices that are not there."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        assert api.platform() == "cpu"
    elsewhere = mesh.abstract_mesh.update(
        abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert api.platform() == "tpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "Q"}, "variant 'Q'"),
        ({"similarity": "l2"}, "similarity 'l2'"),
        ({"labels_BxM": np.zeros((3, 8), int)}, "shapes do not fit"),
        ({"bias_V": np.zeros(149)}, "shapes do not fit"),
        ({"known_BxV": np.zeros((3, 149), bool)}, "known must be bool"),
        ({"known_BxV": np.zeros((3, 150))}, "known must be bool"),
        ({"bias_V": np.zeros((150, 1))}, "shapes do not fit"),
        ({"bias_V": 0.5}, "shapes do not fit"),
        ({"hidden_BxMxD": np.zeros((3, 0, 6)), "labels_BxM": np.zeros((3, 0), int)}, "at least 1"),
        ({"labels_BxM": np.zeros((3, 7))}, "labels has the type float"),
        ({"labels_BxM": np.zeros((3, 7), np.uint8)}, "labels has the type uint8; .*signed"),
        ({"hidden_BxMxD": np.zeros((3, 7, 6), int)}, "hidden has the type int.*floating-point"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    names = ("hidden_BxMxD", "embedding_VxD", "bias_V", "labels_BxM", "known_BxV")
    with pytest.raises(ValueError, match=message), jax.enable_x64(True):
        cab_loss(**{**dict(zip(names, draw(**ONE), strict=True)), **change})
