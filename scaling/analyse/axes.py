"""The scores table of a study -> the same with a model or data set for each value of its axes."""

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

# What tells runs apart beside size, objective, scheme and seeds, and how a reader is told.
AXES = {
    "encoder": "encoder {}",
    "duration": "{}",
    "encoding": "input {}",
    "supervision": "{} labels",
    "masking": "{} masks",
    "masking_rate": "masking {:g}",
    "similarity_weight": "weight {:g}",
}


def apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Names the data set of each score by the axes that vary: "kang (3 epochs)".

    Curves, differences and claims are of one data set, and so of one value of each axis. Rows
    without a value, such as those of baselines, and of mlm where the weight of cab varies, stand
    beside each. The two variants of cab are two models: "cab", and "cab_plain" of the plain one.

    Args:
      rows: one row per score; a table without the columns of AXES, or in which each has one value,
        is given back as it is.
    """
    return _apart(variants_apart(rows), [axis for axis in AXES if axis in rows])


def varying(rows: pd.DataFrame, axes: Iterable[str] = AXES) -> list[str]:
    """Axes of which the trained models have several values; variants of cab are models."""
    trained, found = rows[rows["kind"] == "pretrained"], []
    for axis in [axis for axis in axes if axis in rows]:
        here = trained[given(trained, axis)]
        # Each variant of cab has a weight of its own.
        of = here.groupby("model")[axis] if axis == "similarity_weight" else here[axis]
        if np.any(of.nunique() > 1):
            found.append(axis)
    return found


def given(rows: pd.DataFrame, axis: str) -> pd.Series:
    """Rows that have a value of an axis; a weight of 0 is none: nothing is penalised."""
    return rows[axis].notna() & (rows[axis] != 0)


def file_name(text: str) -> str:
    """A data set, named by axes or not, as part of the name of a file."""
    return re.sub(r"[^\w.-]+", "_", text).strip("_")


def variants_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Names the model of the plain variant of cab "cab_plain"."""
    if "variant" not in rows:
        return rows
    plain = (rows["model"] == "cab") & (rows["variant"] == "plain")
    return rows.assign(model=rows["model"].mask(plain, "cab_plain")) if plain.any() else rows


def _apart(rows: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    if not axes:
        return rows
    axis, *others = axes
    valued = given(rows, axis)
    if axis == "similarity_weight":  # each variant has its own; one alone tells nothing apart
        several = rows[valued].groupby("model")[axis].nunique() > 1
        valued &= rows["model"].isin(several.index[several])
    values = sorted(rows.loc[valued & (rows["kind"] == "pretrained"), axis].unique())
    if len(values) < 2:
        return _apart(rows, others)
    parts = []
    for value in values:
        part = rows[(rows[axis] == value) | ~valued]
        named = part["dataset"].astype(str) + f" ({AXES[axis].format(value)})"
        parts.append(_apart(part.assign(dataset=named), others))
    return pd.concat(parts, ignore_index=True)
