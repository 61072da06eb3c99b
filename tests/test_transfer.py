"""Maximal update parameterisation: what a few steps change does not grow with the width."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from scaling.pretrain import masking, optimizer, step
from scaling.pretrain.model import RankEncoder
from scaling.settings import Settings

V, L = 200, 24


def settings(width: int, base: int) -> step.RunSettings:
    """Two layers of heads of width 64, without dropout; a constant rate."""
    config = default.get_config()
    config.model.update(layers=2, width=width, heads=width // 64, feed_forward=4 * width)
    config.model.update(length=L, dropout=0.0, base_width=base)
    config.objective.name = "mlm"
    config.train.update(warmup=0.0, learning_rate=1e-4, clip=1e9)
    return Settings.from_config(config).run


def batch(run: step.RunSettings) -> masking.MaskedCells:
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(np.arange(2, V))[:L] for _ in range(16)]).astype(np.int32)
    return masking.mask_cells(tokens, 0, np.zeros(16, int), np.arange(16), V, run.masking)


def trained(run: step.RunSettings, steps: int) -> tuple[dict, dict]:
    """Weights before and after some steps on one batch."""
    params = step.initial_params(0, run.model, V)
    before = jax.device_get(params)
    state = step.State(params, optimizer.optimizer(run.train, 10**6).init(params), jnp.int32(0))
    for _ in range(steps):
        state, _ = step.train_step(state, batch(run), np.uint32(0), run.program(), 10**6)
    return before, state.params


def moved(width: int, base: int) -> dict[str, float]:
    """Root mean squares of what four steps change in the last states and the logits."""
    run = settings(width, base)
    model, cells = RankEncoder(run.model, V), batch(run)

    @jax.jit
    def look(params):
        read = {"params": params}, cells.inputs_BxL
        hidden_BxMxD = model.apply(*read, cells.slots_BxM)
        states = model.apply(*read, method=model.encode)[-1]
        return {"states": states, "logits": hidden_BxMxD @ params["embedding"].T}

    before, after = map(look, trained(run, 4))
    return {of: float(jnp.sqrt(jnp.mean((after[of] - before[of]) ** 2))) for of in before}


@pytest.mark.slow
def test_changes_of_states_and_logits_grow_with_the_width_unless_transferred():
    """The coordinate check of Yang et al. 2022 (Tensor Programs V, appendix D.1)."""
    of_base = moved(64, 64)
    for width in (128, 256, 512):
        ratio = {of: size / of_base[of] for of, size in moved(width, 64).items()}
        # The logits' change holds a part that averages out, as 1 / sqrt(width), on top.
        assert 0.7 < ratio["states"] < 1.3 and 0.25 < ratio["logits"] < 1.1, (width, ratio)
    standard = {of: size / of_base[of] for of, size in moved(512, 0).items()}
    assert standard["states"] > 2.5 and standard["logits"] > 5, standard


@pytest.mark.slow
def test_the_base_width_is_the_standard_parameterisation_to_the_bit():
    (first, standard), (again, at_base) = (trained(settings(64, base), 2) for base in (0, 64))
    for one, other in ((first, again), (standard, at_base)):
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, other))


def test_the_standard_optimiser_is_adamw_to_the_bit():
    run, rng = settings(64, 0), np.random.default_rng(0)
    params = {"kernel": jnp.array(rng.normal(size=(8, 5))), "bias": jnp.array(rng.normal(size=5))}
    plain = optax.chain(
        optax.clip_by_global_norm(run.train.clip),
        optax.adamw(
            optimizer.schedule(run.train, 100), weight_decay=0.001,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )  # fmt: skip
    ours = optimizer.optimizer(run.train, 100)
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(plain.init(params))
    of_ours, of_plain = (jax.jit(o.update)(params, o.init(params), params) for o in (ours, plain))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), of_ours, of_plain))


def test_the_rate_of_hidden_matrices_alone_is_lowered_and_their_decay_is_not():
    params = jax.eval_shape(lambda: step.initial_params(0, settings(128, 64).model, V))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 2.0), params)
    train = dataclasses.replace(settings(128, 64).train, weight_decay=0.01)
    grads, adamw = jax.tree.map(jnp.ones_like, params), optimizer.optimizer(train, 100, 0.25)
    update, _ = jax.jit(adamw.update)(grads, adamw.init(params), params)
    sizes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.unique(leaf)
        for path, leaf in jax.tree.leaves_with_path(update)
    }
    matrices = ("query", "key", "value", "out", "expand", "contract", "dense")
    hidden = {path for path in sizes if path.split("/")[-2:-1] and path.endswith("kernel")}
    assert {path.split("/")[-2] for path in hidden} == set(matrices)
    assert len(hidden) == 2 * 6 + 1
    for path, size in sizes.items():
        step_of = 0.25 if path in hidden else 1.0
        matrix = params_ndim(params, path) > 1 and not path.endswith("bias")
        decay = 0.01 * 2.0 if matrix else 0.0
        np.testing.assert_allclose(size, -1e-4 * (step_of + decay), 1e-5, err_msg=path)


def params_ndim(params: dict, path: str) -> int:
    for name in path.split("/"):
        params = params[name]
    return params.ndim


def test_the_head_starts_and_answers_as_its_width_wants():
    base, wide = settings(64, 64).model, settings(256, 64).model
    assert (base.ratio, wide.ratio, settings(256, 0).model.ratio) == (1.0, 0.25, 1.0)
    params = step.initial_params(0, wide, V)
    np.testing.assert_allclose(jnp.std(params["dense"]["kernel"]), 0.02 / 2, 0.02)
    np.testing.assert_allclose(jnp.std(params["embedding"]), 0.02, 0.02)
    # Every other matrix starts with variance 1 / fan-in.
    layer = params["layer_0"]
    of_attention = layer["attention"]["query"]["kernel"], layer["attention"]["out"]["kernel"]
    for kernel, fan_in in (
        (of_attention[0], 256), (of_attention[1], 256),
        (layer["expand"]["kernel"], 256), (layer["contract"]["kernel"], 1024),
    ):  # fmt: skip
        np.testing.assert_allclose(jnp.std(kernel), fan_in**-0.5, 0.02)
    cells = batch(settings(256, 64))
    read = {"params": params}, cells.inputs_BxL, cells.slots_BxM
    standard = dataclasses.replace(wide, base_width=0)
    full, less = (jax.jit(RankEncoder(m, V).apply)(*read) for m in (standard, wide))
    np.testing.assert_array_equal(less, full / 4)


def test_a_negative_base_width_is_refused():
    with pytest.raises(ValueError, match="model.base_width is -64"):
        settings(64, -64)
