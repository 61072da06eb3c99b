"""Accuracy, repeats and uniqueness of predicted genes against a count by hand."""

import collections

import jax
import numpy as np

from scaling.pretrain.predictions import cell_metrics

B, M, V = 40, 9, 12


def counted_by_hand(top, labels, counted, known) -> dict[str, float]:
    predictions = [int(t) for t, y, c in zip(top, labels, counted, strict=True) if c and y >= 0]
    truth = [int(y) for y, c in zip(labels, counted, strict=True) if c and y >= 0]
    times = collections.Counter(predictions)
    n = len(predictions)
    return {
        "slots": n,
        "accuracy": sum(p == y for p, y in zip(predictions, truth, strict=True)) / n if n else 0,
        "repeat_unmasked": sum(bool(known[p]) for p in predictions) / n if n else 0,
        "repeat_masked": sum(count - 1 for count in times.values()) / n if n else 0,
        "uniqueness": sum(count == 1 for count in times.values()) / n if n else 0,
    }


def test_every_cell_is_counted_as_by_hand():
    rng = np.random.default_rng(0)
    top, labels = rng.integers(0, V, (2, B, M), dtype=np.int32)
    labels[rng.random((B, M)) < 0.3] = -1
    labels[0] = -1
    top[1], labels[1] = 4, 4  # one gene everywhere, and always right
    top[rng.random((B, M)) < 0.3] = 5
    counted = rng.random((B, M)) < 0.7
    counted[2] = False
    known = rng.random((B, V)) < 0.4
    found = jax.device_get(jax.jit(cell_metrics)(top, labels, counted, known))
    for cell in range(B):
        wanted = counted_by_hand(top[cell], labels[cell], counted[cell], known[cell])
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_allclose(found[name][cell], value, 1e-6, err_msg=f"{name} {cell}")
    for name, value in found.items():
        assert value.dtype == np.float32 and value[0] == value[2] == 0
        assert len(np.unique(value)) > 3, name


def test_known_answers():
    top = np.array([[7, 7, 7, 3, 2, 9]], np.int32)
    labels = np.array([[7, 1, 2, 3, 4, -1]], np.int32)
    known = np.zeros((1, V), bool)
    known[0, [2, 9]] = True
    found = cell_metrics(top, labels, np.ones((1, 6), bool), known)
    wanted = {"slots": 5, "accuracy": 2 / 5, "repeat_unmasked": 1 / 5, "repeat_masked": 2 / 5,
              "uniqueness": 2 / 5}
    assert {name: round(float(v[0]), 6) for name, v in found.items()} == wanted
