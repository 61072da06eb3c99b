"""An HDF5 file, here or remote -> the file opened, its texts as str."""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np

from scaling.corpus.stores.contents import Address, broken, remote


@contextlib.contextmanager
def opened(path: Address, kind: str) -> Iterator[h5py.File]:
    """Opens a file to read.

    Args:
      path: of the file; a remote address is read through fsspec, block by block.
      kind: what the file should be, for messages.

    Raises:
      ValueError: no such file, no HDF5, or the package for its file system is missing.
    """
    with contextlib.ExitStack() as stack:
        try:
            content = path
            if remote(path):
                import fsspec

                content = stack.enter_context(fsspec.open(path))
            file = stack.enter_context(h5py.File(content))
        except Exception as error:  # each file system of fsspec raises its own kinds
            raise ValueError(broken(path, kind, error)) from error
        yield file


def column(dataset: h5py.Dataset) -> np.ndarray:
    """A one-dimensional dataset, texts as str in an object array."""
    values = dataset[()]
    if values.dtype.kind not in "SO":
        return values
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return np.array(texts, object)
