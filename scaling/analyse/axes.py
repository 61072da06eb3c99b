"""The scores table of a study -> the same with a model or data set for each value of its axes."""

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
    # A weight of 0 is no weight: nothing is penalised.
    given = rows[axis].notna() & (rows[axis] != 0)
    if axis == "similarity_weight":  # each variant has its own; one alone tells nothing apart
        several = rows[given].groupby("model")[axis].nunique() > 1
        given &= rows["model"].isin(several.index[several])
    values = sorted(rows.loc[given & (rows["kind"] == "pretrained"), axis].unique())
    if len(values) < 2:
        return _apart(rows, others)
    parts = []
    for value in values:
        part = rows[(rows[axis] == value) | ~given]
        named = part["dataset"].astype(str) + f" ({AXES[axis].format(value)})"
        parts.append(_apart(part.assign(dataset=named), others))
    return pd.concat(parts, ignore_index=True)
