"""Scores and fitted curves in; PNGs per task, data set and reading out, one panel per score."""

import io
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image
from tqdm import tqdm

from scaling.analyse.axes import file_name
from scaling.analyse.fits import LOWER_IS_BETTER
from scaling.analyse.trends import tidy

# Okabe-Ito colours: apart for the colour-blind; markers and line styles keep them apart in grey.
STYLE = {
    "mlm": ("#0072B2", "o", "-", "MLM"),
    "cab": ("#D55E00", "s", "-", "CAB"),
    "cab_plain": ("#56B4E9", "P", "-", "CAB, plain variant"),
    "cab_no_similarity": ("#CC79A7", "D", "-", "CAB without similarity penalty"),
    "hvg": ("#009E73", "^", "-.", "HVG (baseline)"),
    "pca": ("#E69F00", "v", "-.", "PCA (baseline)"),
    "parameter_free": ("#7A7A2E", "X", "-.", "parameter-free (baseline)"),
    "harmony": ("#882255", "", (0, (1, 1)), "Harmony on the scored cells"),
    "scvi": ("#117733", "", (0, (3, 1, 1, 1)), "scVI on the scored cells"),
    "untrained": ("#000000", "", "--", "untrained model"),
    "most_frequent": ("#7F7F7F", "", ":", "floor: most frequent gene"),
    "copy_input": ("#7F7F7F", "", (0, (6, 2, 1, 2)), "floor: copied input"),
}
CURVES = ("mlm", "cab", "cab_plain", "cab_no_similarity", "hvg", "pca", "parameter_free")
SCORES = {  # title and unit of each panel
    "loss": ("Loss", "nats per masked gene"),
    "accuracy": ("Accuracy", "share of masked genes"),
    "repeat_unmasked": ("Predictions already in the cell", "share of predictions"),
    "repeat_masked": ("Predictions made again", "share of predictions"),
    "repeat": ("All repeated predictions", "sum of the two shares, 0 to 2"),
    "uniqueness": ("Genes predicted just once", "share of predictions"),
    "coverage": ("Coverage of genes", "genes predicted / present"),
    "entropy_ratio": ("Diversity of predicted genes", "entropy / that of the truth"),
    "knn_accuracy": ("Accuracy, kNN probe", "share of cells"),
    "knn_macro_f1": ("Macro-F1, kNN probe", "mean F1 over cell types"),
    "logistic_accuracy": ("Accuracy, logistic probe", "share of cells"),
    "logistic_macro_f1": ("Macro-F1, logistic probe", "mean F1 over cell types"),
    "avg_bio": ("AvgBIO", "mean of ASW, NMI and ARI"),
    "asw_label": ("Cell types apart", "silhouette width, 0 to 1"),
    "nmi": ("Clusters match cell types", "NMI"),
    "ari": ("Clusters match cell types", "ARI"),
    "batch_score": ("Batches mixed within types", "1 - |batch silhouette|"),
    "pcr_score": ("Batch variance removed", "share (PCR score)"),
    "average_batch_score": ("Average batch score", "mean of the two batch scores"),
    "ilisi": ("Batches among neighbours", "iLISI, 0 to 1"),
    "kbet": ("Neighbourhoods like the whole", "kBET, share accepted"),
    "graph_connectivity": ("Types in one piece", "graph connectivity"),
}
TASKS = {
    "masked_genes": "Masked genes",
    "cell_types": "Cell types",
    "batch_mixing": "Clusters and batch mixing",
}


def draw_all(rows: pd.DataFrame, fits: list[dict], folder: Path) -> list[dict]:
    """Draw every figure into `folder`.

    Of masked genes, those at `<mask>` positions are drawn, one figure for predictions read from P
    and one from Q; the residuals of the curves have a figure of their own.
    Returns: [{path, residuals: path or None, title, task, dataset, read_from}], in the order a
      reader wants them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figures, table = [], drawable(tidy(rows))
    asked = [
        (task, dataset, read_from, here[here["read_from"].isin([read_from, ""])])
        for task in TASKS
        for dataset, here in table[table["task"] == task].groupby("dataset")
        for read_from in sorted(set(here["read_from"]) - {""}) or [""]
    ]
    for task, dataset, read_from, shown in tqdm(asked, "pictures", unit="picture", leave=False):
        title = f"{TASKS[task]}, {dataset}"
        title += f": predictions read from {read_from}" if read_from else ""
        name = file_name("_".join(filter(None, [task, str(dataset), read_from])))
        path = folder / f"{name}.png"
        curves = [
            f for f in fits
            if (f["task"], f["dataset"], f["read_from"]) == (task, dataset, read_from)
            and f["positions"] in ("mask", "")
        ]  # fmt: skip
        _draw(shown, curves, title, path, _panel)
        left = None
        if any(f["band"] for f in curves):
            left = folder / f"{name}_residuals.png"
            _draw(_residuals(shown, curves), [], title, left, _residual_panel)
        figures.append({"path": path, "residuals": left, "title": title, "task": task,
                        "dataset": dataset, "read_from": read_from})  # fmt: skip
    return figures


def drawable(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of a tidied table with a value, at `<mask>` positions where positions apply."""
    return table[table["value"].notna() & table["positions"].isin(["mask", ""])]


def _residuals(rows: pd.DataFrame, curves: list[dict]) -> pd.DataFrame:
    """The rows that a curve was fitted to, with score minus curve in place of the score."""
    parts = []
    for fit in curves:
        here = rows[(rows["model"] == fit["model"]) & (rows["score"] == fit["score"])]
        if fit["band"] and len(here := here[here["cells"] > 0]):
            at = np.log(here["cells"]), np.log(fit["band"]["x"]), fit["band"]["mid"]
            parts.append(here.assign(value=here["value"] - np.interp(*at)))
    return pd.concat(parts)


def _draw(rows: pd.DataFrame, curves: list[dict], title: str, path: Path, panel) -> None:
    scores = [name for name in SCORES if name in set(rows["score"])]
    scores += sorted(set(rows["score"]) - set(SCORES))
    columns = 2 if len(scores) <= 4 else 3
    lines = -(-len(scores) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.7 * columns, 2.75 * lines + 1.1), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    handles = {}
    for axis, score in zip(axes.flat, scores, strict=False):
        fits = {f["model"]: f for f in curves if f["score"] == score}
        panel(axis, rows[rows["score"] == score], fits, score)
        _dress(axis, rows[rows["score"] == score])
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    for axis in list(axes.flat)[len(scores) :]:
        axis.set_axis_off()
    handles |= _key(rows, curves)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns + 1,
                  fontsize=9, frameon=False)  # fmt: skip
    unfinished, drawn = path.with_name(f".{path.name}.part"), io.BytesIO()
    figure.savefig(drawn, dpi=140, format="png")
    plt.close(figure)
    # Few colours are drawn; a palette of them takes a third of the bytes.
    Image.open(drawn).convert("RGB").quantize(192).save(unfinished, "PNG", optimize=True)
    os.replace(unfinished, path)


def _panel(axis, rows: pd.DataFrame, fits: dict[str, dict], score: str) -> None:
    present = [m for m in CURVES if m in set(rows["model"])]
    for model in STYLE:
        here = rows[rows["model"] == model]
        if here.empty:
            continue
        colour, marker, line, label = STYLE[model]
        if model not in CURVES:
            by_size = here.groupby("cells")["value"].mean()
            if len(by_size) > 1:  # as the most frequent gene of each subset
                axis.plot(by_size.index, by_size, color=colour, linestyle=line, lw=1.4, label=label)
            else:
                axis.axhline(by_size.mean(), color=colour, linestyle=line, lw=1.4, label=label)
            continue
        means = _points(axis, here, model, present)
        band = fits[model]["band"] if model in fits else None
        if band is None:
            axis.plot(means.index, means, color=colour, lw=0.8, linestyle=line, label=label,
                      marker=marker, ms=5, markevery=[])  # fmt: skip
            continue
        axis.plot(band["x"], band["mid"], color=colour, lw=1.8, linestyle=line, label=label,
                  marker=marker, ms=5, markevery=[])  # fmt: skip
        if band["low"] is not None:
            axis.fill_between(band["x"], band["low"], band["high"], color=colour, alpha=0.18, lw=0)
    better = "↓ lower is better" if score in LOWER_IS_BETTER else "↑ higher is better"
    title, unit = SCORES.get(score, (score, "score"))
    axis.set_title(f"{title}\n({better})", fontsize=9.5)
    axis.set_ylabel(unit, fontsize=8.5)


def _residual_panel(axis, rows: pd.DataFrame, fits: dict[str, dict], score: str) -> None:
    present = [m for m in CURVES if m in set(rows["model"])]
    for model in present:
        colour, marker, line, label = STYLE[model]
        means = _points(axis, rows[rows["model"] == model], model, present)
        axis.plot(means.index, means, color=colour, lw=0.8, linestyle=line, label=label,
                  marker=marker, ms=5, markevery=[])  # fmt: skip
    axis.axhline(0, color="black", lw=0.8)
    title, unit = SCORES.get(score, (score, "score"))
    axis.set_title(f"{title}\nminus its fitted curve", fontsize=9.5)
    axis.set_ylabel(unit, fontsize=8.5)


def _points(axis, rows: pd.DataFrame, model: str, present: list[str]) -> pd.Series:
    """Draws a model's runs and their means by size, which are returned."""
    colour, marker, _, _ = STYLE[model]
    here = rows[rows["cells"] > 0]
    # Markers side by side, not hidden.
    aside = 1.08 ** (present.index(model) - (len(present) - 1) / 2)
    means = here.groupby("cells")["value"].mean()
    for done, face in ((True, colour), (False, "white")):
        points = here[(here["converged"] == False) != done]  # noqa: E712 (None is neither)
        axis.plot(points["cells"] * aside, points["value"], marker, ms=4, mfc=face, mec=colour,
                  mew=1, alpha=0.75, linestyle="none")  # fmt: skip
    axis.plot(means.index * aside, means, marker="_", ms=9, mew=2, color=colour, linestyle="none")
    return means


def _dress(axis, rows: pd.DataFrame) -> None:
    sizes = rows.loc[rows["model"].isin(CURVES) & (rows["cells"] > 0), "cells"]
    _log_axis(axis, np.unique(sizes))
    axis.grid(alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8.5)


def _log_axis(axis, sizes) -> None:
    axis.set_xscale("log")
    if len(sizes):
        axis.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 3) if len(sizes) else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("unique pretraining cells (log scale)", fontsize=8.5)


def _key(rows: pd.DataFrame, curves: list[dict]) -> dict:
    """Legend entries for what every panel shares: points, means, bands, hollow markers."""
    grey = "#555555"
    key = {
        "one run (seed)": plt.Line2D([], [], color=grey, marker="o", ms=4, linestyle="none"),
        "mean over seeds": plt.Line2D([], [], color=grey, marker="_", ms=12, mew=2, ls="none"),
    }
    if (rows["converged"] == False).any():  # noqa: E712
        hollow = plt.Line2D([], [], marker="o", mfc="white", mec=grey, ms=5, linestyle="none")
        key["run not converged"] = hollow
    if any(f["band"] for f in curves):
        key["fitted curve, 95 % band"] = plt.Rectangle((0, 0), 1, 1, color=grey, alpha=0.25)
    return key
