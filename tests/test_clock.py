"""Seconds by name, blocks within blocks, and what a restart threw away."""

import pytest

from scaling.pretrain import clock


@pytest.fixture
def now(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: time[0])
    return time


def test_a_block_within_a_block_counts_for_itself(now):
    run = clock.Clock()
    now[0] += 1
    with run.spent("held_out"):
        now[0] += 2
        with run.spent("compile"):
            now[0] += 4
    run.add("input", 0.5)
    now[0] += 1
    found = run.read()
    assert found["seconds"] == 8 and found["goodput"] == pytest.approx(1 - 6.5 / 8)
    named = {name.removeprefix("seconds/"): v for name, v in found.items() if "/" in name}
    assert named == {"compile": 4, "input": 0.5, "checkpoint": 0, "held_out": 2, "lost": 0}


def test_a_block_that_fails_counts(now):
    run = clock.Clock()
    with pytest.raises(OSError), run.spent("checkpoint"):
        now[0] += 3
        raise OSError
    assert run.read()["seconds/checkpoint"] == 3


def test_a_restart_goes_on_from_the_checkpoint_and_knows_what_was_lost(now):
    first = clock.Clock()
    with first.spent("compile"):
        now[0] += 4
    now[0] += 6
    saved = first.read()
    now[0] += 5  # trained, written as rows, then killed
    last_row = first.read()["seconds"]
    now[0] += 1_000  # nobody's
    again = clock.Clock()
    with again.spent("checkpoint"):
        now[0] += 2
    again.resume(saved, last_row)
    found = again.read()
    assert found["seconds"] == 10 + 5 + 2
    assert (found["seconds/lost"], found["seconds/compile"]) == (5, 4)
    assert found["seconds/checkpoint"] == 2
    assert found["goodput"] == pytest.approx(6 / 17)
    # The last row may lie before the checkpoint; without one, all that rows tell of was lost.
    for kept, row, lost in ((saved, 9.0, 0), ({}, 9.0, 9)):
        other = clock.Clock()
        other.resume(kept, row)
        assert other.read()["seconds/lost"] == lost
        assert other.read()["seconds"] == kept.get("seconds", 0) + lost
