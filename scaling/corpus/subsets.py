"""Cell ids -> the held-out cells and the nested subsets, the same on every machine."""

import hashlib

import numpy as np
import pandas as pd


def order(ids: np.ndarray, seed: int) -> np.ndarray:
    """Positions of the ids by their hash under the seed, int64 [len(ids)].

    A cell's place depends on (seed, id) alone, so a corpus that grows keeps its order.
    """
    key = str(seed).encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids]
    return np.argsort(np.frombuffer(b"".join(digests), ">u8"), kind="stable")


def nested(obs: pd.DataFrame, cells: int, seed: int) -> np.ndarray:
    """Rows of a subset of the training pool; the smaller stands inside the larger.

    Args:
      obs: the corpus's cells with the columns cell_id and split.
      cells: size of the subset.
      seed: subset seed.

    Returns:
      int64 [cells], in the order of the hash: nested(obs, n, s) == nested(obs, m, s)[:n].

    Raises:
      ValueError: the pool holds fewer cells.
    """
    pool = np.flatnonzero(obs["split"].to_numpy() == "pool")
    if not 0 < cells <= len(pool):
        raise ValueError(
            f"a subset of {cells} cells from a pool of {len(pool)}; lower study.sizes, or give "
            "more cells with data.h5ad"
        )
    return pool[order(obs["cell_id"].to_numpy()[pool], seed)[:cells]]


def hold_out(obs: pd.DataFrame, share: float, seed: int) -> tuple[np.ndarray, str]:
    """Chooses the cells that no subset may touch.

    Whole donors, else whole batches, in the order of their hash until the share is reached;
    cells one by one where the cells have neither (or only one).

    Args:
      obs: cells with the columns cell_id, donor and batch ("" = not known).
      share: of the cells to hold out, between 0 and 1.
      seed: split seed.

    Returns:
      bool [cells], and by what they were split: "donor", "batch" or "cell".
    """
    for column in ("donor", "batch"):
        groups = obs[column].to_numpy().astype(str)
        names, sizes = np.unique(groups, return_counts=True)
        if len(names) < 2 or "" in names:
            continue
        ranked = order(names, seed)
        reached = np.cumsum(sizes[ranked]) >= share * len(obs)
        chosen = ranked[: min(int(np.argmax(reached)) + 1, len(names) - 1)]
        return np.isin(groups, names[chosen]), column
    held_out = np.zeros(len(obs), bool)
    held_out[order(obs["cell_id"].to_numpy(), seed)[: max(1, round(share * len(obs)))]] = True
    return held_out, "cell"
