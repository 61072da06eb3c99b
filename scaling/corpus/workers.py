"""Pieces of work -> done, one after another here, or side by side on a Dask cluster."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from scaling.corpus.pieces import Piece, Work

TIMEOUT = "30s"


def run(
    do: Callable[[Piece, Work], None],
    pieces: Sequence[Piece],
    works: dict[str, Work],
    what: str,
    *,
    workers: int,
    scheduler: str,
) -> None:
    """Calls do(piece, works[piece.dataset]) for every piece, with a bar of cells done.

    Args:
      do: leaves its results on disk; may be called twice for a piece whose worker was lost.
      pieces: what is to be done.
      works: by the data set's name.
      what: the bar's text.
      workers: threads of this process; 1 works without a cluster.
      scheduler: address of a `dask.distributed` scheduler whose workers see the same files under
        the same paths, or "" for this machine.
    """
    bar = tqdm(total=sum(len(p.rows) for p in pieces), desc=what, unit="cells", leave=False)
    with bar:
        if not pieces:
            return
        if workers == 1 and not scheduler:
            for piece in pieces:
                do(piece, works[piece.dataset])
                bar.update(len(piece.rows))
            return
        from dask.distributed import as_completed  # here, as it takes a third of a second

        with _client(workers, scheduler) as client:
            sent = {name: client.scatter(work, broadcast=True) for name, work in works.items()}
            futures = {
                client.submit(do, piece, sent[piece.dataset], pure=False): piece
                for piece in pieces
            }
            for future in as_completed(futures):
                future.result()
                bar.update(len(futures.pop(future).rows))


@contextlib.contextmanager
def _client(workers: int, scheduler: str) -> Iterator:
    from dask.distributed import Client, LocalCluster

    if scheduler:
        try:
            client = Client(scheduler, timeout=TIMEOUT)
        except OSError as error:
            raise ValueError(
                f"no dask scheduler answers at {scheduler} ({error}); start one, or leave "
                "data.scheduler empty to work on this machine"
            ) from error
        with client:
            yield client
        return
    # Threads: what takes time is compiled and does not hold the interpreter's lock, while each
    # process would import all libraries again, in time and in memory.
    options = {"processes": False, "n_workers": 1, "threads_per_worker": workers}
    with LocalCluster(**options, dashboard_address=":0") as cluster, Client(cluster) as client:
        yield client
