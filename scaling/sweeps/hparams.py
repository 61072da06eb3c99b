"""The scores table of a study -> TensorBoard's HParams: a row per run, its axes and its scores."""

import pathlib

import numpy as np
import pandas as pd

from scaling.pretrain import writer

HPARAMS = (
    "objective", "cells", "exposures", "steps", "duration", "encoder", "parameters", "variant",
    "similarity_weight", "encoding", "supervision", "masking", "masking_rate", "scheme",
    "subset_seed", "init_seed", "mask_seed", "learning_rate",
)  # fmt: skip


def write(table: pd.DataFrame, learning_rate: float, folder: pathlib.Path) -> None:
    """One HParams session per run, with its headline scores as metrics.

    Args:
      table: one row per score.
      learning_rate: of all runs.
      folder: of the runs' folders.
    """
    trained = table[(table["kind"] == "pretrained") & table["value"].notna()]
    trained = trained[trained["positions"].isna() | (trained["positions"] == "mask")]
    if trained.empty:
        return
    tags = trained["dataset"] + "/" + trained["score"]
    tags += np.where(trained["read_from"].notna(), "_" + trained["read_from"].fillna(""), "")
    trained = trained.assign(tag=tags)
    columns = sorted(trained["tag"].unique())
    writer.write_hparams_columns(folder, list(HPARAMS), columns)
    for name, rows in trained.groupby("run"):
        first = rows.iloc[0]
        values = {axis: first[axis] for axis in HPARAMS if axis in first}
        values |= {"objective": first["model"], "learning_rate": learning_rate}
        values = {axis: _plain(value) for axis, value in values.items()}
        results = dict(zip(rows["tag"], rows["value"], strict=True))
        writer.write_hparams(folder / name, values, results)


def _plain(value) -> str | float:
    """A number or a text, as HParams stores them; "" for none."""
    return "" if pd.isna(value) else value if isinstance(value, str) else float(value)
