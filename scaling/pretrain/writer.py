"""Numbers of a run -> `metrics.jsonl`, the record, and TensorBoard, for looking."""

import json
import pathlib

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary import Writer as ScalarWriter
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from scaling.pretrain import hosts

METRICS = "metrics.jsonl"


class RunWriter:
    """Appends rows to JSONL and scalars to TensorBoard; opened again, it goes on at a step.

    Of the processes of a job the first one writes.

    Args:
      folder: the run's.
      resume_at: rows of later steps (written after the last checkpoint) are dropped.

    Attributes:
      last: the last row that was found, dropped or not; {} where there is none.
    """

    def __init__(self, folder: pathlib.Path, resume_at: int):
        self._writes, self.last = hosts.first(), {}
        if not self._writes:
            return
        path = folder / METRICS
        rows = read_rows(path)
        self.last = rows[-1] if rows else {}
        kept = [row for row in rows if row["step"] <= resume_at]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.rename(path)
        self._rows = path.open("a")
        self._scalars = ScalarWriter(str(folder))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one row {"step": step, **values}."""
        if not self._writes:
            return
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        self._rows.flush()
        for name, value in values.items():
            self._scalars.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        if not self._writes:
            return
        self._rows.close()
        self._scalars.close()


def read_rows(path: pathlib.Path) -> list[dict]:
    """Rows of a JSONL file; none where there is no file. A cut last line is left out.

    Raises:
      ValueError: a line is no row.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row, error = json.loads(line), "it is no row"
        except ValueError as found:
            row, error = None, found
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number} is damaged ({error}); remove the line and run again"
            )
        rows.append(row)
    return rows


def write_hparams(
    folder: pathlib.Path, settings: dict[str, float | str | bool], scores: dict[str, float]
) -> None:
    """Fills a run's row of TensorBoard's HParams table: settings and final scores."""
    events = EventFileWriter(str(folder), filename_suffix=".hparams")
    summary = hparams.hparams_pb(settings, trial_id=folder.name)
    events.add_event(event_pb2.Event(summary=summary))
    events.close()
    scalars = ScalarWriter(str(folder))
    for name, value in scores.items():
        scalars.add_scalar(name, value, 0)
    scalars.close()


def write_hparams_columns(folder: pathlib.Path, settings: list[str], scores: list[str]) -> None:
    """Declares the columns of the sweep's HParams table, so that it can be sorted by any."""
    columns = hparams.hparams_config_pb(
        hparams=[hparams.HParam(name) for name in settings],
        metrics=[hparams.Metric(name, display_name=name) for name in scores],
    )
    events = EventFileWriter(str(folder), filename_suffix=".hparams")
    events.add_event(event_pb2.Event(summary=columns))
    events.close()


def write_report(folder: pathlib.Path, text: str, pictures: dict[str, pathlib.Path]) -> None:
    """Shows a text and PNGs by name, in place of those that stood there."""
    for before in folder.glob("*.report"):
        before.unlink()
    events = EventFileWriter(str(folder), filename_suffix=".report")
    lines = text.replace("\n", "  \n")  # line breaks of Markdown
    events.add_event(event_pb2.Event(summary=text_pb("report", lines)))
    for name, path in pictures.items():
        image = summary_pb2.Summary.Image(encoded_image_string=path.read_bytes())
        value = summary_pb2.Summary.Value(tag=f"report/{name}", image=image)
        events.add_event(event_pb2.Event(summary=summary_pb2.Summary(value=[value])))
    events.close()
