"""What a store says of itself before its counts are read, and the words for one that is broken."""

import dataclasses
import pathlib

import pandas as pd

Address = pathlib.Path | str  # str for "scheme://" addresses, which a path would mangle


@dataclasses.dataclass(frozen=True)
class Contents:
    """A store's tables.

    Attributes:
      obs: annotations of its cells, indexed by their names, one row a cell.
      matrices: the matrices that may hold the raw counts, in the order to look in them: name and
        the annotations of its columns, indexed by the genes' names.
      layers: names of all layers.
    """

    obs: pd.DataFrame
    matrices: dict[str, pd.DataFrame]
    layers: list[str]


def remote(path: Address) -> bool:
    """Whether the address is one of a remote file system, such as s3:// or gs://."""
    return "://" in str(path)


def suffix(path: Address) -> str:
    """The ending of a path or of a remote address, with its dot."""
    return pathlib.PurePath(str(path)).suffix


def broken(path: Address, kind: str, error: Exception) -> str:
    """Message for a store that its library cannot read."""
    if isinstance(error, ImportError):
        return f"{path}: {error}; pip install 'scaling[remote]'"
    words = " ".join(str(error).split())  # TileDB's are of several lines
    return (
        f"{path}: not a readable {kind} ({type(error).__name__}: {words}); "
        "it may be truncated: copy or download it again"
    )


def check_layer(path: Address, layer: str, layers: list[str], otherwise: str) -> None:
    """Raises a ValueError where a store has no such layer."""
    if layer and layer not in layers:
        raise ValueError(
            f"{path}: no layer {layer!r} (there are: {layers}); set data.layer to one of them, "
            f"or to '' to look in {otherwise}"
        )
