"""Rows of a run that stop and go on, a cut last line, and what TensorBoard reads back."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from scaling.pretrain.writer import (
    METRICS,
    RunWriter,
    read_rows,
    write_hparams,
    write_hparams_columns,
    write_report,
)


def _written(folder, steps, resume_at=0):
    run = RunWriter(folder, resume_at)
    for step in steps:
        run.write(step, {"loss": 1 / (step + 1), "rate": 0.1 * step})
    run.close()
    return read_rows(folder / METRICS)


def _hparams(folder, tag):
    """What the HParams plugin reads of a folder's events."""
    events = EventAccumulator(str(folder)).Reload()
    content = events.summary_metadata[tag].plugin_data.content
    return plugin_data_pb2.HParamsPluginData.FromString(content)


def test_rows_come_back_as_written(tmp_path):
    rows = _written(tmp_path, range(4))
    assert rows == [{"step": s, "loss": 1 / (s + 1), "rate": 0.1 * s} for s in range(4)]
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_each_row_is_on_disk_before_the_next(tmp_path):
    run = RunWriter(tmp_path, 0)
    for step in range(3):
        run.write(step, {"loss": 1.0})
        assert [row["step"] for row in read_rows(tmp_path / METRICS)] == list(range(step + 1))
    run.close()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    _written(tmp_path, range(6))
    rows = _written(tmp_path, range(4, 8), resume_at=3)
    assert [row["step"] for row in rows] == list(range(8))
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


def test_a_cut_last_line_is_left_out_and_written_over(tmp_path):
    _written(tmp_path, range(4))
    path = tmp_path / METRICS
    path.write_text(path.read_text()[:-5])
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2]
    rows = _written(tmp_path, [3, 4], resume_at=3)
    assert [row["step"] for row in rows] == list(range(5))


def test_a_broken_line_before_the_last_is_not_swallowed(tmp_path):
    (tmp_path / METRICS).write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError):
        read_rows(tmp_path / METRICS)


def test_tensorboard_reads_the_scalars(tmp_path):
    _written(tmp_path, range(4))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["tensors"]) == {"loss", "rate"}
    found = {e.step: e.tensor_proto.float_val[0] for e in events.Tensors("loss")}
    assert found == pytest.approx({s: 1 / (s + 1) for s in range(4)})


def test_tensorboard_reads_settings_and_scores_of_a_sweep(tmp_path):
    settings = {"objective": "cab", "cells": 100.0, "tied": True}
    write_hparams_columns(tmp_path, list(settings), ["pbmc/accuracy"])
    write_hparams(tmp_path / "cab-n100-s0", settings, {"pbmc/accuracy": 0.25})

    columns = _hparams(tmp_path, "_hparams_/experiment").experiment
    assert [info.name for info in columns.hparam_infos] == list(settings)
    assert [info.name.tag for info in columns.metric_infos] == ["pbmc/accuracy"]

    start = _hparams(tmp_path / "cab-n100-s0", "_hparams_/session_start_info").session_start_info
    assert start.hparams["objective"].string_value == "cab"
    assert start.hparams["cells"].number_value == 100
    assert start.hparams["tied"].bool_value is True
    events = EventAccumulator(str(tmp_path / "cab-n100-s0")).Reload()
    (score,) = events.Tensors("pbmc/accuracy")
    assert score.tensor_proto.float_val[0] == 0.25


def test_a_report_takes_the_place_of_the_one_before(tmp_path):
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"first")
    write_report(tmp_path, "old", {"loss": picture})
    picture.write_bytes(b"second")
    write_report(tmp_path, "up\ndown", {"loss": picture})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [image.encoded_image_string for image in events.Images("report/loss")] == [b"second"]
    [text] = events.Tensors("report")
    assert text.tensor_proto.string_val[0] == b"up  \ndown"
