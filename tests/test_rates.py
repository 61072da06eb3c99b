"""Learning rates at the ends of a study: the best of each, and whether it is one."""

import types

import numpy as np
import pytest

from configs import smoke
from scaling.pretrain import sweep
from scaling.settings import Settings
from scaling.sweeps import rates


def ends(small: float, large: float) -> dict:
    """Losses whose best rate is as given; 4e-3 diverges."""
    return {
        (end, rate): None if rate == 4e-3 else 1 + abs(rate - aim)
        for end, aim in (("50 cells", small), ("200 cells", large))
        for rate in (5e-4, 1e-3, 2e-3, 4e-3)
    }


def test_one_best_rate_for_all_is_said_to_be_one():
    best, text = rates.compare(ends(1e-3, 1e-3), 1e-3)
    assert best == {"50 cells": 1e-3, "200 cells": 1e-3}
    assert text.splitlines()[-1] == "The best learning rate is the same at all ends"


def test_another_best_rate_is_said_and_what_the_configs_own_costs():
    best, text = rates.compare(ends(1e-3, 2e-3), 1e-3)
    assert best == {"50 cells": 1e-3, "200 cells": 2e-3}
    assert "DIFFERS between ends" in text
    said = "200 cells: the best rate is 0.002; at 0.001, train.learning_rate, the held-out loss is "
    assert f"{said}0.001 above its" in text


def test_a_best_rate_at_the_edge_and_ends_that_diverge_are_told():
    losses = ends(5e-4, 1e-3)
    losses |= {("200 cells", rate): None for rate in (5e-4, 1e-3, 2e-3, 4e-3)}
    best, text = rates.compare(losses, 1e-3)
    assert best == {"50 cells": 5e-4, "200 cells": None}
    assert "the best rate is 0.0005, at the end of the rates tried" in text
    assert "200 cells: every rate diverged" in text


def test_the_ends_of_the_study_are_trained_with_each_rate(monkeypatch, tmp_path):
    pool, trained = types.SimpleNamespace(obs={"split": np.array(["pool"] * 400)}), {}

    def pretrain(run, corpus, folder):
        trained[folder.name] = run
        return {"held_out_loss": abs(run.train.learning_rate - 8e-5 * run.train.cells ** 0.5)}

    monkeypatch.setattr(sweep.loop, "pretrain", pretrain)
    config = smoke.get_config()
    config.study.sizes = (50, 100, 0.5)
    best, rows, text = rates.at_ends(
        Settings.from_config(config), pool, [5e-4, 1e-3, 2e-3], tmp_path
    )
    assert best == {"1x16, 50 cells": 5e-4, "1x16, 200 cells": 1e-3} and "DIFFERS" in text
    assert sorted(trained) == sorted(
        f"mlm-n{n}-s0-rate{rate}" for n in (50, 200) for rate in ("0.0005", "0.001", "0.002")
    )
    assert {run.objective.name for run in trained.values()} == {"mlm"}
    assert [row["held_out_loss"] for row in rows] == [
        pytest.approx(abs(row["learning_rate"] - 8e-5 * n**0.5)) for row, n in
        zip(rows, [50] * 3 + [200] * 3, strict=True)
    ]  # fmt: skip
