"""Learning rate at every step, duration, and what decay and clipping touch."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scaling.pretrain import optimizer
from scaling.pretrain.optimizer import TrainSettings

TRAIN = TrainSettings(
    cells=0, steps=100, epochs=0.0, batch=8, learning_rate=0.5, warmup=0.1, weight_decay=0.0,
    clip=1e9, subset_seed=0, init_seed=0, mask_seed=0, checkpoint_every=10, log_every=1,
    held_out_cells=8,
)


def test_the_rate_rises_for_a_tenth_and_falls_to_zero():
    rate = optimizer.schedule(TRAIN, 100)
    steps = np.arange(101)
    wanted = np.where(steps < 10, 0.5 * steps / 10, 0.5 * (100 - steps) / 90)
    np.testing.assert_allclose([rate(s) for s in steps], wanted, 1e-5, 1e-8)
    at_once = optimizer.schedule(dataclasses.replace(TRAIN, warmup=0.0), 100)
    np.testing.assert_allclose([at_once(s) for s in (0, 50, 100)], [0.5, 0.25, 0.0], 1e-6)
    of_steps = optimizer.schedule(dataclasses.replace(TRAIN, warmup=10), 100)
    np.testing.assert_array_equal([of_steps(s) for s in steps], [rate(s) for s in steps])
    one_step = optimizer.schedule(TRAIN, 1)
    assert one_step(0) == 0.5


def test_a_first_step_is_the_rate_times_the_sign_and_decay_spares_vectors():
    grads = {"kernel": jnp.array([[3.0, -3.0], [3.0, 1.0]]), "scale": jnp.array([1.0, -2.0])}
    grads["bias"] = jnp.array([[1.0, -2.0], [2.0, -1.0]])  # of two heads
    params = jax.tree.map(lambda gradient: jnp.full(gradient.shape, 4.0), grads)
    settings = dataclasses.replace(TRAIN, warmup=0.0, weight_decay=0.01)
    adamw = optimizer.optimizer(settings, 100)
    update, _ = adamw.update(grads, adamw.init(params), params)
    # Adam's first step is -rate * sign(gradient); decoupled decay adds -rate * decay * weight.
    decay = 0.01 * 4.0
    wanted = -0.5 * (np.sign(grads["kernel"]) + decay)
    np.testing.assert_allclose(update["kernel"], wanted, 1e-5)
    for name in ("scale", "bias"):
        np.testing.assert_allclose(update[name], -0.5 * np.sign(grads[name]), 1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("learning_rate", (0.0, -1.0, math.nan, math.inf)),
        ("weight_decay", (-1.0, math.nan, math.inf)),
        ("clip", (0.0, -1.0, math.nan)),
        ("epochs", (math.nan, math.inf)),
    ],
)
def test_numbers_that_cannot_train_are_refused(name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"train.{name}"):
            dataclasses.replace(TRAIN, **{name: value})


def test_gradients_are_cut_to_the_norm():
    settings = dataclasses.replace(TRAIN, warmup=0.0, clip=1e-9)
    params, grads = {"bias": jnp.zeros(2)}, {"bias": jnp.array([3e3, 4e3])}
    adamw = optimizer.optimizer(settings, 100)
    update, _ = adamw.update(grads, adamw.init(params), params)
    # Of a gradient of 6e-10 and 8e-10 Adam's epsilon of 1e-8 leaves g / (|g| + epsilon).
    small = np.array([6e-10, 8e-10])
    np.testing.assert_allclose(update["bias"], -0.5 * small / (small + 1e-8), 1e-3)


def test_duration_is_steps_or_epochs():
    assert TRAIN.total_steps(800) == 100
    with pytest.raises(ValueError, match="100 steps of 8 cells do not reach each of the 801"):
        TRAIN.total_steps(801)
    of_epochs = dataclasses.replace(TRAIN, steps=0, epochs=2.5)
    assert of_epochs.total_steps(80) == 25
    assert of_epochs.total_steps(81) == 26
    assert of_epochs.total_steps(1) == 1


def test_a_run_is_longer_than_its_warm_up():
    assert dataclasses.replace(TRAIN, warmup=99).total_steps(800) == 100
    with pytest.raises(ValueError, match="100 steps, and a run over 800 cells has 100; lower it"):
        dataclasses.replace(TRAIN, warmup=100).total_steps(800)
    of_epochs = dataclasses.replace(TRAIN, steps=0, epochs=1.0, warmup=2)
    assert of_epochs.total_steps(24) == 3
    with pytest.raises(ValueError, match="2 steps, and a run over 16 cells has 2"):
        of_epochs.total_steps(16)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 1.0}, "train.steps is 100 and train.epochs 1.0; set exactly one"),
        ({"steps": 0}, "train.steps is 0 and train.epochs 0.0; set exactly one"),
        ({"warmup": 1.0}, "train.warmup is 1.0"),
        ({"warmup": 1.5}, "train.warmup is 1.5; give a share of the run, below 1, or a whole"),
        ({"warmup": 2.5}, "train.warmup is 2.5"),
        ({"warmup": float("inf")}, "train.warmup is inf"),
        ({"warmup": float("nan")}, "train.warmup is nan"),
        ({"warmup": -0.1}, "train.warmup is -0.1"),
        ({"batch": 0}, "must be above 0"),
        ({"log_every": 0}, "must be above 0"),
        ({"checkpoint_every": 0}, "must be above 0"),
        ({"held_out_cells": 0}, "must be above 0"),
        ({"held_out_every": -1}, "train.held_out_every is -1; give a number of steps, or 0"),
        ({"buckets": 0}, "must be above 0"),
    ],
)
def test_contradictory_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TRAIN, **wrong)
