"""A store of counts -> an `.h5ad` of as many cells as asked, no two alike, for measurements."""

import os
import pathlib

import h5py
import numpy as np
from tqdm import tqdm

from scaling.corpus import readers

KEPT = 0.9  # probability of each count to stay in a copy
COMPRESSED = {"compression": "gzip", "compression_opts": 1}  # as public files are, but quicker


def tile(source: readers.Source, cells: int, out: pathlib.Path, seed: int = 0) -> None:
    """Copies the store's cells, all in turn and again until there are enough, with fewer counts.

    Every count (molecule) of a copy is kept with the probability `KEPT`, so that copies of a cell
    differ, as do measurements of one cell at a lower depth (binomial thinning). Reads and writes
    some cells at a time.

    Args:
      source: the store; its annotations are copied, names get the copy's number.
      cells: to be written.
      out: the file, X CSR int32, compressed by gzip; one that is there is replaced.
      seed: of the draws.
    """
    from anndata.io import sparse_dataset, write_elem  # here, as it takes most of a second

    size = len(source.obs)
    copies, rows = np.divmod(np.arange(cells), size)
    obs = source.obs.iloc[rows]
    obs.index = [f"{name}-{copy}" for name, copy in zip(obs.index, copies, strict=True)]
    var = source.obs.iloc[:0, :0].reindex(source.genes)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    bar = tqdm(total=cells, desc=f"writing {out.name}", unit="cells", leave=False)
    try:
        with h5py.File(partial, "w") as file, bar:
            file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
            write_elem(file, "obs", obs)
            write_elem(file, "var", var)
            for copy in range(copies[-1] + 1):
                rng = np.random.default_rng((seed, copy))
                for _, counts in readers.chunks(source, rows[copies == copy]):
                    counts.data = rng.binomial(counts.data.astype(np.int64), KEPT).astype(np.int32)
                    counts.eliminate_zeros()
                    if "X" in file:
                        sparse_dataset(file["X"]).append(counts)
                    else:
                        write_elem(file, "X", counts, dataset_kwargs=COMPRESSED)
                    bar.update(counts.shape[0])
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
