"""True and predicted cell types in; a picture of their confusion matrix out."""

import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

READABLE = 25  # classes, up to which counts are written into the fields


def draw(true_N: np.ndarray, predicted_N: np.ndarray, title: str, path: Path) -> Path:
    """Draw which cell types are taken for which.

    Rows are the true types, the commonest first, with their cells; columns are the predicted
    types in the same order, then those that are no true type. The colour is the share of the row
    (recall on the diagonal); counts are written where there are up to 25 columns.

    Args:
      true_N, predicted_N: cell types, str, one per cell.
      title: put above.
      path: of a .png, .pdf or .svg; written under another name first.

    Raises:
      ValueError: no cells, or not one prediction per cell.
    """
    path = Path(path)
    true_N, predicted_N = np.asarray(true_N, str), np.asarray(predicted_N, str)
    if not true_N.size or true_N.shape != predicted_N.shape:
        raise ValueError(
            f"{true_N.shape} true and {predicted_N.shape} predicted cell types: pass one of each "
            "for every cell"
        )
    rows, columns, counts_RxC = _table(true_N, predicted_N)
    share_RxC = counts_RxC / counts_RxC.sum(1, keepdims=True)
    cells, many = counts_RxC.sum(1), len(columns) > READABLE
    field = 0.2 if many else 0.42  # inches
    longest = 0.075 * max(len(name) for name in [*rows, *columns])
    size = (len(columns) * field + longest + 2.4, len(rows) * field + longest + 1.6)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_RxC, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    text = 6 if many else 8
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=text)
    axes.set_yticks(
        range(len(rows)), [f"{name} ({n:,})" for name, n in zip(rows, cells, strict=True)],
        fontsize=text,
    )  # fmt: skip
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("predicted", fontsize=9)
    axes.set_ylabel("true (cells)", fontsize=9)
    axes.set_title(title, fontsize=10)
    if not many:
        for r, c in zip(*np.nonzero(counts_RxC), strict=True):
            colour = "white" if share_RxC[r, c] > 0.55 else "black"
            axes.text(c, r, str(counts_RxC[r, c]), ha="center", va="center", color=colour,
                      fontsize=6.5)  # fmt: skip
    bar = figure.colorbar(image, ax=axes, aspect=35, shrink=0.8, pad=0.02)
    bar.set_label("share of the true type's cells", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(unfinished, format=path.suffix.lstrip(".") or "png", dpi=150)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _table(true_N: np.ndarray, predicted_N: np.ndarray) -> tuple[list, list, np.ndarray]:
    """Row names, column names (the rows' first) and counts; the commonest types first."""
    classes = np.unique(np.concatenate([true_N, predicted_N]))
    counts_CxC = np.zeros((len(classes), len(classes)), np.int64)
    pairs = np.searchsorted(classes, true_N), np.searchsorted(classes, predicted_N)
    np.add.at(counts_CxC, pairs, 1)
    cells, given = counts_CxC.sum(1), counts_CxC.sum(0)
    order = np.lexsort((classes, np.where(cells > 0, 0, -given), -cells))
    rows = order[cells[order] > 0]
    return classes[rows].tolist(), classes[order].tolist(), counts_CxC[np.ix_(rows, order)]
