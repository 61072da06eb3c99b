"""A study's scores under noise -> pictures: its largest models and baselines, a line each."""

import itertools
from pathlib import Path

import pandas as pd

from scaling.analyse import axes
from scaling.evaluate import noise
from scaling.evaluate.intervals import Score

KINDS = {"noised": "cells noised", "thinned": "counts kept"}
AXES = {**axes.AXES, "scheme": "{} subsets"}
FIRST = {"pretrained": 0, "baseline": 1}


def draw_all(rows: pd.DataFrame, folder: Path) -> list[dict]:
    """A picture for each data set, kind of change and value of the axes; see `noise.draw`.

    Lines are the models at the largest size, and where an axis varies its values, as "cab (input
    bins)"; where several vary, there is a picture for each value of the others. A line is the mean
    of its seeds, its band reaches over all their intervals. Trained models come first, and what is
    beyond the eighth line is left out. The two variants of cab are two models.

    Args:
      rows: the scores table, one row per score.
      folder: of the pictures.

    Returns:
      path and title of each picture, none where the study has no scores under noise.
    """
    if not {"task", "of", "cells", "model"} <= set(rows):
        return []
    rows = rows[(rows["task"] == "noise") & rows["value"].notna()]
    rows = axes.variants_apart(rows[rows["score"].isin(noise.PANELS)])
    if rows.empty:
        return []
    rows = rows[rows["cells"] == rows.groupby("model")["cells"].transform("max")]
    varying = axes.varying(rows, AXES)
    line, others = varying[:1], varying[1:]
    values = [sorted(rows.loc[axes.given(rows, axis), axis].unique()) for axis in others]
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for dataset, combination in itertools.product(
        sorted(rows["dataset"].unique()), itertools.product(*values)
    ):
        part, said = rows[rows["dataset"] == dataset], [dataset]
        for axis, value in zip(others, combination, strict=True):
            part = part[(part[axis] == value) | ~axes.given(part, axis)]
            said.append(AXES[axis].format(value))
        for kind, ends in KINDS.items():
            found = _lines(part[part["of"].str.endswith(ends)], line)
            if found:
                path = folder / f"noise_{kind}_{axes.file_name('_'.join(said))}.png"
                title = ", ".join(said)
                noise.draw(found, path, title=title, band="intervals of all seeds")
                drawn.append({"path": path, "title": f"Under noise: {title}, {ends}"})
    return drawn


def _lines(rows: pd.DataFrame, axis: list[str]) -> dict[str, list[Score]]:
    """Scores of each line, by its name."""
    by_kind = rows["kind"].map(FIRST).fillna(len(FIRST))
    named = rows["model"].astype(str)
    for name in axis:
        given = axes.given(rows, name)
        named = named.mask(given, named + " (" + rows[name].map(AXES[name].format) + ")")
    rows = rows.assign(line=named, first=by_kind).sort_values("first", kind="stable")
    found: dict[str, list[Score]] = {}
    for (line, score, of), seeds in rows.groupby(["line", "score", "of"], sort=False):
        band = seeds["low"].min(), seeds["high"].max()
        found.setdefault(line, []).append(Score(score, seeds["value"].mean(), *band, of=of))
    return dict(itertools.islice(found.items(), len(noise.COLOURS)))
