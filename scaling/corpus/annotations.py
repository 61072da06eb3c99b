"""What the files say of their cells -> one table of the cells that are kept."""

import numpy as np
import pandas as pd

from scaling.corpus import readers

COLUMNS = ("cell_type", "donor", "batch", "assay", "tissue", "disease", "sex")


def table(
    sources: list[readers.Source], columns: dict[str, str], rows: list[np.ndarray]
) -> pd.DataFrame:
    """One row for each cell: where it stands, and what is known of it.

    Args:
      sources: the files.
      columns: name in .obs of each of COLUMNS.
      rows: ascending rows of each file to take.

    Returns:
      Columns row (in the file), dataset, cell_id, and COLUMNS, "" where not known.
    """
    frames = []
    for source, kept in zip(sources, rows, strict=True):
        obs, name = source.obs.iloc[kept], source.name
        frame = pd.DataFrame({"row": kept, "dataset": name})
        frame["cell_id"] = [f"{name}:{cell}" for cell in obs.index]
        for column in COLUMNS:
            frame[column] = _text(obs[columns[column]]) if columns[column] in obs else ""
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def check_label(cell_type: str, scored: list[readers.Source]) -> None:
    """Raises a ValueError where none of the files to score on has the column with the labels."""
    if cell_type and not any(cell_type in source.obs for source in scored):
        columns = {source.name: list(source.obs.columns) for source in scored}
        raise ValueError(
            f"no column {cell_type!r} in .obs of the files to score on (there are: {columns}); "
            "set data.cell_type to one of them, or to '' where no cell has a label"
        )


def _text(annotation: pd.Series) -> np.ndarray:
    if annotation.dtype.kind == "f" and (annotation.dropna() % 1 == 0).all():
        annotation = annotation.astype("Int64")  # numbers become floats where one is missing
    return annotation.astype(object).where(annotation.notna(), "").astype(str).to_numpy()


def kept(source: readers.Source, keep: dict[str, dict[str, str]]) -> np.ndarray:
    """Rows of a file whose annotations have the values that `keep` asks for, ascending.

    Args:
      source: the file.
      keep: {file's name: {column: value}}.

    Raises:
      ValueError: `keep` names a column that the file has not, or leaves none of its cells.
    """
    chosen = np.ones(len(source.obs), bool)
    for column, value in keep.get(source.name, {}).items():
        if column not in source.obs:
            raise ValueError(
                f"{source.path}: data.keep asks for {column} == {value!r}, but .obs has no such "
                f"column (there are: {list(source.obs.columns)})"
            )
        chosen &= _text(source.obs[column]) == value
    if not chosen.any():
        raise ValueError(f"{source.path}: data.keep leaves no cell ({keep[source.name]})")
    return np.flatnonzero(chosen)
