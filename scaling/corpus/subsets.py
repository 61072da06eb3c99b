"""Cell ids -> the held-out cells and the nested subsets, the same on every machine."""

import fractions
import hashlib

import numpy as np
import pandas as pd

SCHEMES = ("random", "reweighted", "sketch")
LOG_2 = 0.6931471805599453


def order(ids: np.ndarray, seed: int) -> np.ndarray:
    """Positions of the ids by their hash under the seed, int64 [len(ids)].

    A cell's place depends on (seed, id) alone, so a corpus that grows keeps its order.
    """
    return np.argsort(_hashes(ids, seed), kind="stable")


def nested(
    obs: pd.DataFrame,
    cells: int | None,
    seed: int,
    scheme: str = "random",
    bins: np.ndarray | None = None,
    spike: str = "",
    spike_share: float = 0.0,
) -> np.ndarray:
    """Rows of a subset of the training pool; the smaller stands inside the larger.

    The scheme and the seed put the whole pool in one order; a subset is its first cells. What
    stays when a corpus has grown:
    - random: the order of all its cells.
    - reweighted: the order within each cell type; that of all cells where every type has grown
      by the same factor. Other growth changes how types alternate, since weights are counts.
    - sketch: the order of the cells of one bin, where the bins stayed (see sketch.bins). Beside
      new cells a cell may come at a finer side of the bins than before, never at a coarser one.

    Args:
      obs: the corpus's cells with the columns cell_id and split; for `reweighted` cell_type, for
        a spike dataset.
      cells: size of the subset; None takes all cells of the order.
      seed: subset seed.
      scheme: "random"; "reweighted", each type as likely as any other (`_reweighted`); or
        "sketch", space covered evenly (`_sketch`).
      bins: codes from `sketch.bins`, uint64 [len(obs)]; for `sketch`.
      spike: data set of which a share of the cells comes, the rest from all others; "" is none.
      spike_share: n cells hold floor(n * share) of the spike, each source in its own order.

    Returns:
      int64 [cells], in the order: nested(obs, n, s) == nested(obs, m, s)[:n].

    Raises:
      ValueError: the pool holds fewer cells, no cell type, or nothing of the spike.
    """
    pool = np.flatnonzero(obs["split"].to_numpy() == "pool")

    def ranked(rows):
        ids = obs["cell_id"].to_numpy()[rows]
        if scheme == "reweighted":
            return rows[_reweighted(ids, obs["cell_type"].to_numpy()[rows], seed)]
        return rows[order(ids, seed) if scheme == "random" else _sketch(ids, bins[rows], seed)]

    if scheme == "reweighted" and not (obs["cell_type"].to_numpy()[pool] != "").any():
        raise ValueError(
            "scheme 'reweighted' needs cell types, and no cell of the training pool has one; name "
            "their column by data.cell_type, or take another of study.schemes, train.scheme"
        )
    if spike:
        spiked = obs["dataset"].to_numpy()[pool] == spike
        if not spiked.any():
            names = sorted(set(obs["dataset"].to_numpy()[pool]))
            raise ValueError(f"train.spike is {spike!r}; the training pool has {names}")
        found = _mixed(ranked(pool[~spiked]), ranked(pool[spiked]), spike_share)
    else:
        found = ranked(pool)
    if cells is not None and not 0 < cells <= len(found):
        of = f" ({len(found)} at {spike_share:g} from {spike})" if spike else ""
        raise ValueError(
            f"a subset of {cells} cells from a pool of {len(pool)}{of}; lower train.cells (of a "
            "study, study.sizes), or give more cells with data.h5ad"
        )
    return found[:cells]


def _hashes(ids: np.ndarray, seed: int) -> np.ndarray:
    key = str(seed).encode()
    digests = [hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def _reweighted(ids: np.ndarray, cell_types: np.ndarray, seed: int) -> np.ndarray:
    """Weighted sampling without replacement, as an order (Efraimidis & Spirakis 2006).

    Keys u^(1/w) fall, where u comes from the hash and w is 1 / frequency of the cell's type;
    that is, -log(u) * frequency rises. Cells without a label ("") count as one type.
    """
    hashes = _hashes(ids, seed)
    ranked = np.argsort(hashes, kind="stable")
    rest = np.uint64(2**52 - 1) - (hashes[ranked] >> np.uint64(12))
    _, types, counts = np.unique(cell_types[ranked], return_inverse=True, return_counts=True)
    waits = -_log((rest.astype(np.float64) + 0.5) / 2.0**52) * counts[types]
    return ranked[np.argsort(waits, kind="stable")]


def _log(u: np.ndarray) -> np.ndarray:
    """Natural logarithm of float64 in (0, 1) by additions, products and quotients alone.

    IEEE 754 fixes these to the bit, while libraries' logarithms differ between processors.
    log m = 2 artanh((m - 1) / (m + 1)), as a series.
    """
    mantissa, exponent = np.frexp(u)
    low = mantissa < 0.70710678
    mantissa, exponent = np.where(low, 2 * mantissa, mantissa), exponent - low
    ratio = (mantissa - 1) / (mantissa + 1)
    square, series = ratio * ratio, np.zeros_like(ratio)
    for k in range(23, 0, -2):
        series = series * square + 1 / k
    return exponent * LOG_2 + 2 * ratio * series


def _sketch(ids: np.ndarray, bins: np.ndarray, seed: int) -> np.ndarray:
    """One cell of each occupied bin, then of each bin of half the side, and so on.

    The cell of a bin is that of least hash, and of the bins of one side the cells of least hash
    come first. So a subset of any size holds one cell from each occupied bin of the largest number
    of bins that it can fill, as a sketch of Hie et al. 2019 does, and the number of bins need not
    be chosen. Cells that share the smallest bin with another come last.
    """
    ranked = order(ids, seed)
    turn = np.full(len(ids), 64)
    for turn_now, shift in enumerate(range(64, -1, -4)):
        code = bins[ranked] >> np.uint64(shift) if shift < 64 else np.zeros(len(ids), np.uint64)
        first = np.unique(code, return_index=True)[1]
        turn[first] = np.minimum(turn[first], turn_now)
    return ranked[np.argsort(turn, kind="stable")]


def _mixed(base: np.ndarray, spiked: np.ndarray, share: float) -> np.ndarray:
    """The two orders in one: of its first n cells floor(n * share) are spiked."""
    exact = fractions.Fraction(str(share)).limit_denominator(10**6)  # 0.29 of 100 cells is 29
    places = np.arange(len(base) + len(spiked) + 1)
    of_spike = places * exact.numerator // exact.denominator
    of_spike = of_spike[(of_spike <= len(spiked)) & (places - of_spike <= len(base))]
    is_spike = np.diff(of_spike) > 0
    found = np.empty(len(is_spike), np.int64)
    found[is_spike], found[~is_spike] = spiked[: of_spike[-1]], base[: (~is_spike).sum()]
    return found


def draw(
    rows: list[np.ndarray], cells: int, share: float, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Draws cells as `datasets.Dataset.shuffle(seed).select(range(cells))` does.

    Args:
      rows: ascending rows of each file to draw from.
      cells: how many to draw.
      share: of them to hold out: those drawn last.
      seed: of NumPy's permutation of all rows.

    Returns:
      Ascending rows of each file that are drawn; bool [cells], file after file, which are held out.

    Raises:
      ValueError: fewer cells than are to be drawn, or too few to hold out any.
    """
    ends = np.cumsum([len(of_file) for of_file in rows])
    last = round(cells * share)
    if not 0 < last < cells <= ends[-1]:
        raise ValueError(
            f"data.draw is {cells} with {last} held out, and there are {ends[-1]} cells; lower it"
        )
    drawn = np.random.default_rng(seed).permutation(ends[-1])[:cells]
    order = np.argsort(drawn)
    held_out = order >= cells - last
    of_files = np.split(drawn[order], np.searchsorted(drawn[order], ends[:-1]))
    starts = ends - [len(of_file) for of_file in rows]
    found = zip(rows, of_files, starts, strict=True)
    return [of_file[at - start] for of_file, at, start in found], held_out


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
