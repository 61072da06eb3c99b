"""An embedding with labels and batches in; a picture of its UMAP, coloured by each, out."""

import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
    import umap

NEIGHBOURS = 15  # as in scanpy
# Okabe-Ito without its yellow, which is hard to see on white; apart for the colour-blind.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "^", "s", "X", "D", "v", "P", "*")  # the next names take the same colours
LAYERS = 20  # shares of the cells, drawn one over the other, so that no name hides the others
LETTER = 0.078  # width of one of the key, inches
WIDTH = 7.0  # of a panel, inches
ROW = 0.2  # height of a line of the key, inches


def draw(
    embedding_NxD: np.ndarray,
    labels: np.ndarray,
    batch: np.ndarray,
    title: str,
    path: Path,
    *,
    seed: int,
) -> None:
    """Draw the cells' UMAP (McInnes et al. 2018) twice, coloured by label and by batch.

    15 Euclidean neighbours and a minimum distance of 0.3, from the two leading principal
    components. Names take colours in the order of their number of cells; with more names than
    colours, further markers. A label's number, as in the key, stands at the one of its cells that
    is nearest to their median.

    Args:
      embedding_NxD: floats, one row per cell.
      labels, batch: one name per cell; "" is drawn grey as unknown.
      title: above both panels.
      path: of the PNG; written beside it under another name, then renamed.
      seed: of the UMAP and of the order in which cells are drawn.

    Raises:
      ValueError: other than one label and batch per cell, a value that is not finite, or no more
        cells than neighbours.
    """
    x_NxD, path = np.asarray(embedding_NxD, np.float32), Path(path)
    if x_NxD.ndim != 2 or not len(x_NxD) == len(labels) == len(batch):
        raise ValueError(
            f"an embedding of shape {x_NxD.shape}, {len(labels)} labels and {len(batch)} batches: "
            "pass a matrix with one row, one label and one batch per cell"
        )
    if not np.isfinite(x_NxD).all():
        raise ValueError("the embedding holds NaN or infinity; drop or recompute those cells")
    if len(x_NxD) <= NEIGHBOURS:
        raise ValueError(f"{len(x_NxD)} cells: a UMAP of {NEIGHBOURS} neighbours needs more cells")
    at_Nx2 = place(x_NxD, seed)
    panels = {"cell type": np.asarray(labels, str), "batch": np.asarray(batch, str)}
    keys = {what: _Key(names, numbers=what != "batch") for what, names in panels.items()}
    key_height = ROW * max(key.rows for key in keys.values()) + 0.3
    height = 0.9 + WIDTH + key_height
    figure = Figure(figsize=(2 * WIDTH + 0.6, height))
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=15, fontweight="bold", y=1 - 0.3 / height)
    order = np.random.default_rng(seed).permutation(len(x_NxD))
    for column, (what, key) in enumerate(keys.items()):
        left = (0.2 + column * (WIDTH + 0.2)) / (2 * WIDTH + 0.6)
        box = (left, key_height / height, WIDTH / (2 * WIDTH + 0.6), WIDTH / height)
        axis = figure.add_axes(box)
        key.draw(axis, at_Nx2, panels[what], order)
        axis.set_title(f"{what} ({len(key.names)})", fontsize=12)
    unfinished = path.with_name(f".{path.name}.part")
    figure.savefig(unfinished, dpi=130, format="png")
    os.replace(unfinished, path)


def place(x_NxD: np.ndarray, seed: int) -> np.ndarray:
    """The UMAP of the cells, float32 [N, 2]; the same for the same seed on the same machine."""
    start = "pca" if x_NxD.shape[1] > 2 else "random"
    model = umap.UMAP(
        n_neighbors=NEIGHBOURS, min_dist=0.3, init=start, random_state=seed, n_jobs=1
    )
    return model.fit_transform(x_NxD)


class _Key:
    """Names, the most frequent first, with a colour, a marker and a line of the key for each."""

    def __init__(self, names: np.ndarray, *, numbers: bool):
        known, count = np.unique(names[names != ""], return_counts=True)
        first = np.argsort(-count, kind="stable")
        self.names, self._numbers = list(known[first]), numbers
        self._texts = [
            (f"{i}  " if numbers else "") + f"{name} ({n:,})"
            for i, (name, n) in enumerate(zip(self.names, count[first], strict=True), start=1)
        ]
        if (names == "").any():
            self._texts.append(f"unknown ({(names == '').sum():,})")
        widest = max(len(text) for text in self._texts) + 4
        self.columns = int(np.clip(WIDTH / (LETTER * widest), 1, len(self._texts)))
        self.rows = -(-len(self._texts) // self.columns)

    def draw(self, axis, at_Nx2: np.ndarray, names: np.ndarray, order: np.ndarray):
        """One panel: cells, numbers among them, and the key below."""
        size = float(np.clip(40_000 / len(order), 2, 22))
        styles = [self._style(i) for i in range(len(self.names))]
        where = {name: i for i, name in enumerate(self.names)}
        which_N = np.array([where.get(name, -1) for name in names])
        colours_N = np.array([colour for colour, _ in styles] + ["#BBBBBB"])[which_N]
        markers_N = np.array([marker for _, marker in styles] + ["o"])[which_N]
        for layer in np.array_split(order, LAYERS):
            for marker in np.unique(markers_N[layer]):
                cells = layer[markers_N[layer] == marker]
                axis.scatter(
                    *at_Nx2[cells].T, size, colours_N[cells], marker=marker, linewidths=0
                )
        box = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.75}
        for number, name in enumerate(self.names if self._numbers else [], start=1):
            mine = at_Nx2[names == name]
            at = mine[np.square(mine - np.median(mine, axis=0)).sum(1).argmin()]
            fontsize = 10 if len(self.names) <= 15 else 8
            axis.text(*at, number, ha="center", va="center", fontsize=fontsize, bbox=box)
        styles += [("#BBBBBB", "o")] * (len(self._texts) - len(styles))
        handles = [
            axis.scatter([], [], 45, colour, marker=marker, label=text)
            for (colour, marker), text in zip(styles, self._texts, strict=True)
        ]
        axis.set(xticks=[], yticks=[])
        axis.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(0, -0.005), ncols=self.columns,
            fontsize=9, frameon=False, borderaxespad=0.3, handletextpad=0.2, columnspacing=1.2,
        )  # fmt: skip

    def _style(self, i: int) -> tuple[str, str]:
        return COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
