"""Rows of `bench.py` -> lines of text, and a picture of memory against size."""

import json
import pathlib


def write(record: dict, path: pathlib.Path) -> None:
    """Writes the record as JSON and, where builds were watched, the picture beside it (`.png`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.rename(path)
    for row in record["rows"].values():
        if "sizes" in row:
            plot_memory(row, path.with_suffix(".png"))


def table(rows: dict[str, dict]) -> str:
    """What each way does in a second, or the memory of each size; why a row is left out."""
    lines = []
    for title, row in rows.items():
        lines.append(title)
        if "left_out" in row:
            lines.append(f"  left out: {row['left_out']}")
            continue
        for way, rate in row.get("rates", {}).items():
            digits = ",.0f" if rate >= 100 else ".3f"
            lines.append(f"  {way:20} {rate:12{digits}} {row['unit']}")
        if "ratio" in row:
            lines.append(f"  ours to plain        {row['ratio']:12.2f} (goal {row['goal']:g})")
        elif "rates" in row and "goal" in row:
            lines.append(f"  goal                 {row['goal']:12,.0f} {row['unit']}")
        for way, peak in row.get("memory", {}).items():
            lines.append(f"  {way:20} {peak / 1e9:12.2f} GB of the process at its peak")
        for size in row.get("sizes", []):
            lines.append(
                f"  {size['cells']:>9,} cells, {size['workers']} worker(s)"
                f"  all processes {size['all'] / 1e9:5.2f} GB  largest {size['largest'] / 1e9:5.2f}"
                f" GB (goal {row['goal'] / 1e9:g})  {size['seconds']:7.1f} s"
            )
    return "\n".join(lines)


def plot_memory(row: dict, path: pathlib.Path) -> None:
    """Peak memory of whole builds against their number of cells, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure((6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for workers in sorted({size["workers"] for size in row["sizes"]}):
        mine = [size for size in row["sizes"] if size["workers"] == workers]
        cells = [size["cells"] for size in mine]
        memory = [size["all"] / 1e9 for size in mine]
        axes.plot(cells, memory, "os^"[workers % 3] + "-", label=f"{workers} worker(s)")
    axes.axhline(row["goal"] / 1e9, color="grey", linewidth=1)
    axes.text(cells[0], row["goal"] / 1e9, "goal", va="bottom", color="grey")
    axes.set(xscale="log", xlabel="cells of the corpus", ylim=(0, 1.2 * row["goal"] / 1e9))
    axes.set_ylabel("peak memory of all processes, GB")
    axes.set_xticks(cells, [f"{count:,}" for count in cells])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
