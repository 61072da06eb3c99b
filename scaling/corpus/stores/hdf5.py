"""An HDF5 file, here or remote -> the file opened, its texts as str."""

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
from isal import isal_zlib

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


def span(dataset: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """`dataset[start:stop]` of a one-dimensional dataset, quicker where gzip alone packed it.

    HDF5 unpacks one chunk at a time, under a lock that all threads share; here each thread unpacks
    its own, with a quicker inflate. What is out of the ordinary is left to HDF5.
    """
    packed = dataset.chunks and dataset.compression == "gzip" and not dataset.shuffle
    if not packed or dataset.fletcher32 or dataset.scaleoffset or stop <= start:
        return dataset[start:stop]
    (size,) = dataset.chunks
    first = start // size * size
    chunks = [_chunk(dataset, at, size) for at in range(first, stop, size)]
    if any(chunk is None for chunk in chunks):
        return dataset[start:stop]
    return np.concatenate(chunks)[start - first : stop - first]


def _chunk(dataset: h5py.Dataset, at: int, size: int) -> np.ndarray | None:
    """One chunk, or None where it is not there, not packed, or damaged."""
    try:
        left_out, content = dataset.id.read_direct_chunk((at,))
        values = np.frombuffer(isal_zlib.decompress(content), dataset.dtype)
    except (OSError, RuntimeError, ValueError, isal_zlib.error):
        return None
    return values if not left_out and len(values) == size else None


def column(dataset: h5py.Dataset) -> np.ndarray:
    """A one-dimensional dataset, texts as str in an object array."""
    values = dataset[()]
    if values.dtype.kind not in "SO":
        return values
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values]
    return np.array(texts, object)
