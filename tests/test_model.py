"""The encoder: a forward pass written out in NumPy, sizes, padding, and the order of ranks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from scaling.pretrain.model import Dropout, ModelSettings, RankEncoder, count_parameters
from scaling.pretrain.step import initial_params

SMALL = ModelSettings(
    layers=2, width=12, heads=3, feed_forward=20, length=10, activation="relu", dropout=0.5,
    norm_epsilon=1e-12, attention_dropout=0.5,
)
V = 30
PRESET = ModelSettings(**default.get_config().model.to_dict())


@pytest.fixture(scope="module")
def params():
    """Random weights of every kind: no bias 0, no scale 1."""
    drawn = initial_params(0, SMALL, V)
    leaves, tree = jax.tree.flatten(drawn)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        tree, [np.float64(x) + 0.3 * rng.normal(size=x.shape) for x in leaves]
    )


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(1)
    cells = np.stack([rng.permutation(np.arange(2, V))[:10] for _ in range(3)]).astype(np.int32)
    cells[1, 6:] = 0
    return cells


def encode(params, tokens, **options) -> list[np.ndarray]:
    with jax.enable_x64(True):
        model = RankEncoder(SMALL, V)
        states = model.apply({"params": params}, tokens, method=model.encode, **options)
        return jax.device_get(states)


def norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def forward(params, tokens, slots) -> tuple[list[np.ndarray], np.ndarray]:
    """BERT as its papers have it, one cell and one head at a time."""
    states, head = [[] for _ in range(SMALL.layers + 1)], []
    for cell, of_cell in zip(tokens, slots, strict=True):
        length, real = len(cell), cell != 0
        x = params["embedding"][cell] + params["positions"][:length] + params["token_type"]
        x = norm(x, params["norm"])
        states[0].append(x)
        for n in range(SMALL.layers):
            p = params[f"layer_{n}"]
            a = p["attention"]
            mixed = np.zeros_like(x) + a["out"]["bias"]
            for h in range(SMALL.heads):
                query, key, value = (
                    x @ a[name]["kernel"][:, h] + a[name]["bias"][h]
                    for name in ("query", "key", "value")
                )
                score = query @ key.T / np.sqrt(SMALL.width / SMALL.heads)
                weight = np.exp(score - score.max(1, keepdims=True)) * real
                weight /= weight.sum(1, keepdims=True)
                mixed += weight @ value @ a["out"]["kernel"][h]
            x = norm(x + mixed, p["attention_norm"])
            hidden = np.maximum(x @ p["expand"]["kernel"] + p["expand"]["bias"], 0)
            hidden = hidden @ p["contract"]["kernel"] + p["contract"]["bias"]
            x = norm(x + hidden, p["output_norm"])
            states[n + 1].append(x)
        dense = np.maximum(x[of_cell] @ params["dense"]["kernel"] + params["dense"]["bias"], 0)
        head.append(norm(dense, params["head_norm"]))
    return [np.stack(s) for s in states], np.stack(head)


def test_states_are_those_of_the_forward_pass_written_out(params, tokens):
    slots = np.array([[0, 3, 9], [1, 2, 5], [4, 4, 0]])
    states, head = forward(params, tokens, slots)
    found = encode(params, tokens)
    assert len(found) == SMALL.layers + 1
    real = tokens != 0
    for of_found, of_wanted in zip(found, states, strict=True):
        np.testing.assert_allclose(of_found[real], of_wanted[real], 1e-6, 1e-7)
    with jax.enable_x64(True):
        found = RankEncoder(SMALL, V).apply({"params": params}, tokens, slots)
    np.testing.assert_allclose(found, head, 1e-6, 1e-7)


def test_padding_changes_nothing(params, tokens):
    padded = np.where(np.arange(10) < 6, tokens, 0)
    for longer, shorter in zip(encode(params, padded), encode(params, padded[:, :6]), strict=True):
        np.testing.assert_allclose(longer[:, :6], shorter, 1e-7, 1e-9)


def test_a_cell_does_not_see_its_neighbours(params, tokens):
    together = encode(params, tokens)[-1]
    for cell in range(3):
        alone = encode(params, tokens[[cell]])[-1][0]
        np.testing.assert_allclose(together[cell], alone, 1e-7, 1e-9)


def test_the_order_of_ranks_matters(params, tokens):
    swapped = tokens[:, [0, 2, 1, *range(3, 10)]]
    there, here = encode(params, swapped)[-1], encode(params, tokens)[-1]
    assert (np.abs(there - here).max(-1)[:, 3:6] > 1e-3).all()
    # Without positions a transformer is blind to order.
    blind = {**params, "positions": 0 * params["positions"]}
    there, here = encode(blind, swapped)[-1], encode(blind, tokens)[-1]
    np.testing.assert_allclose(there[:, 3:6], here[:, 3:6], 1e-6, 1e-9)


def test_dropout_acts_in_training_only(params, tokens):
    slots, places = np.tile(np.arange(6), (3, 1)), np.arange(3)

    def states(seed, places):
        read, rngs = (tokens, slots, places), {"dropout": jax.random.key(seed)}
        return np.asarray(RankEncoder(SMALL, V).apply({"params": params}, *read, rngs=rngs))

    still = states(0, None)
    a, b, c = (states(seed, places) for seed in (0, 0, 1))
    assert (a == b).all() and (a != c).mean() > 0.9 and (a != still).mean() > 0.9


def test_dropout_is_a_cells_own(params, tokens):
    """It depends on the cell's place in the global batch alone, not on the cells beside it."""
    twice, slots = tokens[[0, 0]], np.tile(np.arange(6), (2, 1))

    def states(cells, places):
        read = twice[:cells], slots[:cells], np.array(places)
        rngs = {"dropout": jax.random.key(0)}
        return np.asarray(RankEncoder(SMALL, V).apply({"params": params}, *read, rngs=rngs))

    both = states(2, [4, 9])
    assert (both[0] != both[1]).mean() > 0.9
    for row, place in enumerate((4, 9)):
        np.testing.assert_allclose(states(1, [place])[0], both[row], 1e-5, 1e-6)
    share = 1 - np.mean([
        np.asarray(Dropout(0.3).apply({}, np.ones((2, 50, 40)), np.arange(2), rngs=r) != 0)
        for r in ({"dropout": jax.random.key(k)} for k in range(5))
    ])
    assert abs(share - 0.3) < 0.02


def test_the_first_preset_has_the_published_size():
    params = jax.eval_shape(lambda: initial_params(0, PRESET, 25_426))
    sizes = count_parameters(params)
    D, F, N = 256, 512, 6
    of_layers = N * (4 * (D * D + D) + 2 * D * F + F + D + 2 * 2 * D)
    # Beside the layers: positions and token type, two norms, the head's dense layer.
    rest = 2048 * D + D + 2 * 2 * D + D * D + D
    assert sizes["non_embedding_parameters"] == of_layers
    assert sizes["parameters"] == of_layers + rest + 25_426 * D + 25_426
    assert round(sizes["parameters"] / 1e6, 2) == 10.29
    assert round(of_layers / 1e6, 2) == 3.16
    found = sum(x.size for n in range(N) for x in jax.tree.leaves(params[f"layer_{n}"]))
    assert found == of_layers and f"layer_{N}" not in params


def test_weights_are_a_function_of_the_seed():
    first, again, other = (initial_params(seed, SMALL, V) for seed in (0, 0, 1))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), first, again))
    assert (first["embedding"] != other["embedding"]).mean() > 0.99
    assert 0.015 < jnp.std(first["embedding"]) < 0.025 and (first["bias"] == 0).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 0}, "model sizes must be at least 1"),
        ({"heads": 5}, "model.width 12 is no multiple of model.heads 5"),
        ({"activation": "tanh"}, "model.activation 'tanh'"),
        ({"dropout": 1.0}, "model.dropout is 1.0"),
        ({"attention_dropout": -0.1}, "model.attention_dropout is -0.1"),
    ],
)
def test_impossible_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **wrong)


def _gradients(tokens, **changes):
    settings = dataclasses.replace(SMALL, **changes)
    params = initial_params(0, settings, V)
    slots, rngs = np.tile(np.arange(6), (3, 1)), {"dropout": jax.random.key(0)}

    def loss(params):
        read = tokens, slots, np.arange(3)
        states = RankEncoder(settings, V).apply({"params": params}, *read, rngs=rngs)
        return (states.astype(jnp.float32) ** 3).sum(), states

    return jax.value_and_grad(loss, has_aux=True)(params)


def test_computing_layers_again_changes_nothing(tokens):
    (_, plain), wanted = _gradients(tokens)
    (_, again), found = _gradients(tokens, remat=True)
    np.testing.assert_allclose(again, plain, 1e-6, 1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-4), found, wanted)
    jaxpr = str(jax.make_jaxpr(lambda: _gradients(tokens, remat=True))())
    assert "remat" in jaxpr or "checkpoint" in jaxpr


def test_bfloat16_computes_narrow_and_keeps_weights_wide(tokens):
    (_, wide), wanted = _gradients(tokens, dropout=0.0, attention_dropout=0.0)
    (_, narrow), found = _gradients(tokens, dropout=0.0, attention_dropout=0.0, dtype="bfloat16")
    assert narrow.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    assert np.abs(np.float32(narrow) - wide).max() < 0.1 * np.abs(wide).max()
    assert (np.float32(narrow) != wide).any()
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    far = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1), found, wanted)
    assert max(jax.tree.leaves(far)) < 0.2
    with pytest.raises(ValueError, match="model.dtype 'float16'; one of"):
        dataclasses.replace(SMALL, dtype="float16")
