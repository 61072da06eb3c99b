"""Collectives of programs for eight devices, in loops too, and of text as TPUs have it."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from scaling.pretrain import collectives

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8])->f32[8]}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %s = f32[] add(%x, %y)
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = (bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) all-reduce(%a, %b), to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}

%wrapped (p: f32[8]) -> f32[64] {
  ROOT %g.1 = f32[64]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %g = (f32[8]{0}, f32[16,8]{1,0}) all-gather-start(%p), dimensions={0}
  %h = f32[16,8]{1,0} all-gather-done(%g)
  %w = ((f32[8]), f32[64], u32[]) async-start(%p), calls=%wrapped
  %v = f32[64]{0} async-done(%w)
  %l = (s32[], f32[8]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %m = (s32[], f32[8]) while(%t), condition=%c, body=%body
  ROOT %c = pred[6]{0} collective-permute(%q), source_target_pairs={{0,1}}
}
"""


def test_text_is_read_through_loops_and_pairs_of_start_and_done():
    assert collectives.count(TEXT) == {
        "all-reduce": {"count": 4, "bytes": 4 * (4 * 8 * 2 + 4)},
        "all-gather": {"count": 2, "bytes": 16 * 8 * 4 + 64 * 4},
        "collective-permute": {"count": 1, "bytes": 6},
    }
    assert collectives.count("ENTRY %main (p: f32[]) -> f32[] {\n  ROOT %p = f32[]\n}\n") == {}


def of(local) -> dict:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    whole = jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
    return collectives.count(jax.jit(whole).lower(jnp.zeros((8, 16))).compile().as_text())


@pytest.mark.parametrize(("kind", "local", "size"), [
    ("all-reduce", lambda x: x + jax.lax.psum(x, "x"), 16 * 4),
    ("all-gather", lambda x: jax.lax.all_gather(x, "x").sum(0), 8 * 16 * 4),
    ("reduce-scatter", lambda x: jax.lax.psum_scatter(x.T, "x", tiled=True), 2 * 4),
    ("all-to-all", lambda x: jax.lax.all_to_all(x.T, "x", 0, 0, tiled=True), 16 * 4),
    ("collective-permute", lambda x: jax.lax.ppermute(x, "x", [(k, k ^ 1) for k in range(8)]),
     16 * 4),
])
def test_kinds_and_bytes_of_compiled_programs(kind, local, size):
    assert of(local) == {kind: {"count": 1, "bytes": size}}


def test_a_loop_counts_as_often_as_it_turns():
    def local(x):
        def turn(_, y):
            return jnp.sin(y) + jax.lax.psum(y, "x")

        return jax.lax.fori_loop(0, 5, turn, x)

    assert of(local)["all-reduce"] == {"count": 5, "bytes": 5 * 64}
