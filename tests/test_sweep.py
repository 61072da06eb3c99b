"""A sweep trains every case once, keeps shapes' proportions and stands a run that diverges."""

import dataclasses

import pytest

from configs import learning_rate
from scaling.pretrain import sweep
from scaling.settings import Settings

RUN = Settings.from_config(learning_rate.get_config()).run


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Of runs whose best rate falls with the width unless transferred; 8e-3 diverges."""
    asked = {}

    def pretrain(settings, corpus, folder):
        model, rate = settings.model, settings.train.learning_rate
        assert asked.setdefault(folder, settings) == settings
        if rate == 8e-3:
            raise FloatingPointError
        aim = 2e-3 * (64 / model.width if not model.base_width else 1)
        return {"held_out_loss": abs(rate - aim)}

    monkeypatch.setattr(sweep.loop, "pretrain", pretrain)
    found = sweep.sweep(RUN, None, [64, 256], [5e-4, 2e-3, 8e-3], tmp_path)
    assert len(found) == 12 and len(asked) == 9  # at the base width both are one run
    return found


def test_the_best_rate_is_found_for_each_width(rows, tmp_path):
    wanted = {"standard": {64: 2e-3, 256: 5e-4}, "muP": {64: 2e-3, 256: 2e-3}}
    assert sweep.best(rows) == wanted
    assert [row["held_out_loss"] for row in rows if row["learning_rate"] == 8e-3] == [None] * 4
    assert sweep.best([row for row in rows if row["learning_rate"] == 8e-3]) == {}
    sweep.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_other_widths_keep_the_width_of_heads_and_the_share_of_the_feed_forward():
    found = sweep.resized(RUN, 256, 64, "muP")
    wanted = dict(width=256, heads=4, feed_forward=1024, base_width=64)
    assert found == dataclasses.replace(RUN, model=dataclasses.replace(RUN.model, **wanted))
    assert sweep.resized(RUN, 256, 64, "standard").model.base_width == 0
    assert sweep.resized(RUN, 64, 64, "muP") == RUN
    with pytest.raises(ValueError, match="width 96 is no multiple of 64, a head's"):
        sweep.resized(RUN, 96, 64, "muP")
