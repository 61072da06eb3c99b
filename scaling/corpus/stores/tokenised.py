"""Data sets of ready rank tokens (Hugging Face `datasets` folders) -> annotations, tokens by cell.

The layout of Genecorpus-30M and of Geneformer's classification sets: `input_ids`, a cell's tokens
by falling expression; `length`, which is recomputed and compared, never trusted; any other columns.
(https://huggingface.co/datasets/ctheodoris/Genecorpus-30M)
"""

import os
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa

from scaling.corpus.stores.contents import Address, broken, remote, suffix

KIND, TOKENS, ENDING = "data set of tokens", "input_ids", ".dataset"
INTEGERS = {pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()}
STATE, SPLITS = "state.json", "dataset_dict.json"


def recognises(path: Address) -> bool:
    """True of folders that `datasets` saved, and of remote addresses with the ending .dataset."""
    if remote(path):
        return suffix(path) == ENDING
    return path.is_dir() and ((path / STATE).is_file() or (path / SPLITS).is_file())


def annotations(path: Address) -> pd.DataFrame:
    """The columns of one value a cell, class labels by their names; a cell's name is its row."""
    cells = _opened(path)
    from datasets import ClassLabel, Value

    kinds = cells.features
    if TOKENS not in kinds:
        raise ValueError(f"{path}: no column {TOKENS!r} (there are: {list(kinds)})")
    if not len(cells):
        raise ValueError(f"{path}: no cells; nothing to read")
    single = [name for name, kind in kinds.items() if isinstance(kind, Value | ClassLabel)]
    obs = pd.DataFrame(index=pd.RangeIndex(len(cells)))
    try:
        for name in single:
            values = cells.with_format("arrow")[name][:].to_pandas()
            if isinstance(kinds[name], ClassLabel):
                values = values.map(dict(enumerate(kinds[name].names)))
            obs[name] = values.to_numpy()
    except Exception as error:  # pyarrow raises its own kinds for a damaged file
        raise ValueError(broken(path, KIND, error)) from error
    return obs


def chunks(
    path: Address, rows: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Tokens as they are stored.

    Args:
      path: the folder.
      rows: ascending row numbers to read.
      size: of them at a time, at most.

    Yields:
      rows [n], tokens int64 (cells one after another), lengths int64 [n].
    """
    cells = _opened(path).with_format("arrow")
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        where = f"{path}: rows {part[0]}-{part[-1]} of {TOKENS}"
        try:
            stored = cells[part.tolist()].column(TOKENS).combine_chunks()
            empty = stored.is_null().to_numpy(zero_copy_only=False)
        except Exception as error:  # as above
            raise ValueError(f"{where} cannot be read ({error}); copy it again") from error
        if empty.any():
            raise ValueError(f"{path}: row {part[np.argmax(empty)]} has no list in {TOKENS}")
        values = stored.flatten() if hasattr(stored, "flatten") else stored
        if values.type not in INTEGERS or values.null_count:
            raise ValueError(f"{where} hold {stored.type}, or nulls; lists of integers are read")
        tokens = values.to_numpy(zero_copy_only=False)
        lengths = stored.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        yield part, tokens.astype(np.int64), lengths


def _opened(path: Address):
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path}: {error}; pip install 'scaling[datasets]'") from error
    try:
        cells = datasets.load_from_disk(os.fspath(path))
    except Exception as error:  # datasets, pyarrow and fsspec raise many kinds
        raise ValueError(broken(path, KIND, error)) from error
    if isinstance(cells, datasets.DatasetDict):
        raise ValueError(f"{path}: splits {list(cells)}; name the folders of those to read")
    return cells
