"""One or several stores of counts -> a corpus folder: vocabulary, tokens, annotations, manifest."""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus import (
    coverage,
    dictionaries,
    medians,
    pieces,
    ranks,
    readers,
    shards,
    subsets,
    vocabulary,
    workers,
)
from scaling.corpus.pieces import Piece, Work
from scaling.corpus.vocabulary import Vocabulary

MEDIAN_VALUES = 2**25  # held at once for exact medians
ANNOTATIONS = ("cell_type", "donor", "batch", "assay")
STAMP, LOCK = "stamp.json", "lock"


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """What a corpus is built from; the fields are those of `config.data`, explained there."""

    h5ad: str
    score_on: str
    gene_names: str
    gene_column: str
    layer: str
    primary_only: bool
    vocabulary: str
    medians: str
    min_cells: int
    cell_type: str
    donor: str
    batch: str
    assay: str
    keep: dict[str, dict[str, str]]
    held_out: float
    split_seed: int
    cells_per_shard: int
    workers: int
    scheduler: str

    def __post_init__(self):
        if self.medians not in ("sketch", "exact"):
            raise ValueError(f"data.medians is {self.medians!r}; one of sketch, exact")
        if min(self.workers, self.cells_per_shard) < 1:
            raise ValueError("data.workers and data.cells_per_shard must be at least 1")

    def content(self) -> dict:
        """The fields that decide what the corpus holds: all but who builds it."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in fields if name not in ("workers", "scheduler")}


def build(settings: CorpusSettings, out: pathlib.Path) -> shards.Corpus:
    """Builds the corpus, or opens it where the same settings built it before.

    The training pool comes from `h5ad`; held out are the cells of `score_on`, or a share of the
    pool's donors (else batches, else cells). Vocabulary and medians see the pool alone, unless a
    vocabulary is given. A pool cell whose counts equal a held-out cell's is kept from training.

    The corpus is the same for any number of workers. The folder appears when all of it is written;
    until then the work stands beside it in `<out>.partial`, from which a build that was killed
    goes on. After bad input nothing stays.

    Raises:
      ValueError: bad input, naming the file; the folder holds another corpus; another build is
        writing it.
    """
    pool_files = readers.expand(settings.h5ad)
    files = readers.expand(",".join(filter(None, (settings.h5ad, settings.score_on))))
    if not pool_files:
        raise ValueError("data.h5ad is empty; name the stores of counts to train on")
    if both := set(pool_files) & set(readers.expand(settings.score_on)):
        path = min(both, key=str)
        raise ValueError(f"{path} is in data.h5ad and in data.score_on; take it out of one")
    stamp = {
        "settings": settings.content(),
        "inputs": [readers.stamp(path) for path in files],
    }
    if out.exists():
        return _reopen(out, stamp)
    with _alone(out, stamp) as partial:
        try:
            _build(settings, files, set(pool_files), stamp, partial)
        except ValueError:
            shutil.rmtree(partial)
            raise
        for scratch in (STAMP, LOCK):
            (partial / scratch).unlink()
        partial.rename(out)
    return shards.Corpus.open(out)


def _reopen(out: pathlib.Path, stamp: dict) -> shards.Corpus:
    corpus = shards.Corpus.open(out)
    for part, value in json.loads(json.dumps(stamp)).items():
        if corpus.manifest[part] != value:
            raise ValueError(
                f"{out} was built with other {part} ({corpus.manifest[part]}, now {value}); "
                "give another --workdir or remove the folder"
            )
    return corpus


@contextlib.contextmanager
def _alone(out: pathlib.Path, stamp: dict) -> Iterator[pathlib.Path]:
    """The folder of unfinished work, for one build at a time; emptied where the stamp differs."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with open(partial / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another build is writing {out}; wait for it, or give another --workdir"
            ) from error
        content = json.dumps({"format": shards.FORMAT, **stamp})
        path = partial / STAMP
        if not path.exists() or path.read_text() != content:
            for left in partial.iterdir():
                if left.name != LOCK:
                    left.unlink()
            path.write_text(content)
        yield partial


def _build(settings, files, pool_files, stamp, folder: pathlib.Path) -> None:
    names = ("layer", "gene_column", "primary_only")
    options = {name: getattr(settings, name) for name in names}
    sources = [readers.open_source(path, **options) for path in files]
    scored = [s for s in sources if not settings.score_on or s.path not in pool_files]
    _check_label(settings, scored)
    given = _given(settings.vocabulary)
    ids = gene_ids(sources, settings.gene_names, given)
    obs = _annotations(sources, settings)
    if settings.score_on:
        held_out = ~obs["dataset"].isin({readers.name_of(p) for p in pool_files}).to_numpy()
        split_by = "file"
    else:
        held_out, split_by = subsets.hold_out(obs, settings.held_out, settings.split_seed)
    of = _pieces(sources, obs, ~held_out, settings.cells_per_shard)
    union = None if given else tuple(_union(ids))
    by = {"workers": settings.workers, "scheduler": settings.scheduler}

    def work(scan: bool, sketch_of, genes: Vocabulary | None) -> dict[str, Work]:
        return {s.name: Work(s, folder, ids[s.name], scan, sketch_of, genes) for s in sources}

    left = [p for p in of if not p.scanned(folder).exists()]
    workers.run(pieces.read, left, work(True, union, given), "reading cells", **by)
    found = [_numbers(p.scanned(folder), "totals", "fingerprints") for p in of]
    obs["total"], obs["fingerprint"] = (np.concatenate(part) for part in zip(*found, strict=True))
    obs["split"] = np.where(held_out, "held_out", "pool")
    leaked = ~held_out & obs["fingerprint"].isin(obs["fingerprint"][held_out]).to_numpy()
    obs.loc[leaked, "split"] = "duplicate"
    genes = given or _from_pool(sources, ids, union, of, leaked, obs, settings, folder)
    genes.save(folder / shards.VOCABULARY)
    covered = {
        s.name: coverage.report(ids[s.name], _counts_of_columns(s, of, folder), genes)
        for s in sources
    }
    for source in sources:
        coverage.check(source, covered[source.name], genes)
    left = [p for p in of if not p.ranked(folder).exists()]
    workers.run(pieces.read, left, work(False, None, genes), "ranking genes", **by)
    ranked = [_numbers(p.ranked(folder), "lengths", "checksum") for p in of]
    obs["length"] = np.concatenate([lengths for lengths, _ in ranked])
    reports = [_report(s, obs) | covered[s.name] for s in sources]
    obs = obs[obs["length"] > 0].reset_index(drop=True)
    for split, remedy in (("pool", "data.h5ad"), ("held_out", "data.score_on")):
        if not (obs["split"] == split).any():
            raise ValueError(
                f"{settings.h5ad}: no {split} cell is left with a gene of the vocabulary; give "
                f"more cells with {remedy}, or another data.vocabulary"
            )
    obs.to_parquet(folder / shards.OBS, index=False)
    frames = [pd.DataFrame({"dataset": name, "gene_id": of_file}) for name, of_file in ids.items()]
    pd.concat(frames).to_parquet(folder / shards.GENES, index=False)
    names = [shards.VOCABULARY, shards.OBS, shards.GENES]
    manifest = {
        "format": shards.FORMAT,
        **stamp,
        "vocabulary": {"hash": genes.hash, "tokens": len(genes)},
        "cells": obs["split"].value_counts().to_dict(),
        "tokens": int(obs["length"].sum()),
        "split_by": split_by,
        "identical_across_split": int((obs["split"] == "duplicate").sum()),
        "identical_in_pool": int(obs["fingerprint"][obs["split"] == "pool"].duplicated().sum()),
        "files": reports,
        "keep_without_file": sorted(set(settings.keep) - {s.name for s in sources}),
        "shards": [
            {"name": p.shard, "cells": int((lengths > 0).sum()), "tokens": int(lengths.sum())}
            for p, (lengths, _) in zip(of, ranked, strict=True)
        ],
        "checksums": {name: shards.file_checksum(folder / name) for name in names}
        | {p.shard: str(checksum) for p, (_, checksum) in zip(of, ranked, strict=True)},
    }
    (folder / shards.MANIFEST).write_text(json.dumps(manifest, indent=1))
    for piece in of:
        piece.scanned(folder).unlink()
        piece.ranked(folder).unlink()
    for unfinished in folder.glob(".*"):
        unfinished.unlink()


def _pieces(sources, obs, pool: np.ndarray, size: int) -> list[Piece]:
    """The cells in the order of obs, cut at the files' ends and into pieces of one size."""
    of = []
    for source in sources:
        mine = np.flatnonzero(obs["dataset"] == source.name)
        for start in range(0, len(mine), size):
            at = mine[start : start + size]
            of.append(Piece(len(of), source.name, obs["row"].to_numpy()[at], pool[at]))
    return of


def _numbers(path: pathlib.Path, *names: str) -> tuple[np.ndarray, ...]:
    with np.load(path) as arrays:
        return tuple(arrays[name] for name in names)


def _counts_of_columns(source, of: list[Piece], folder: pathlib.Path) -> np.ndarray:
    """Counts of each of a file's columns over the cells that were read, float64."""
    mine = [p for p in of if p.dataset == source.name]
    return sum(_numbers(p.scanned(folder), "columns")[0] for p in mine)


def _report(source, obs) -> dict:
    """What became of a file's cells.

    `cells` are read and `cells_filtered` left out by data.keep. Of those read,
    `cells_without_genes` are dropped, of which `cells_without_counts` have no count at all;
    `cells_kept_from_training` stay, but stand in no subset, as they equal a held-out cell.
    """
    mine = obs[obs["dataset"] == source.name]
    alike = (mine["split"] == "duplicate") & (mine["length"] > 0)
    return {
        "name": source.name,
        "path": str(source.path),
        "matrix": source.matrix,
        "cells": len(mine),
        "cells_filtered": len(source.obs) - len(mine),
        "cells_without_genes": int((mine["length"] == 0).sum()),
        "cells_without_counts": int((mine["total"] == 0).sum()),
        "cells_kept_from_training": int(alike.sum()),
    }


def _given(path: str) -> Vocabulary | None:
    """The vocabulary of `data.vocabulary`: none, a file, or a folder of dictionaries."""
    if not path:
        return None
    at = pathlib.Path(path)
    return dictionaries.read_vocabulary(at) if at.is_dir() else Vocabulary.load(at)


def _check_label(settings: CorpusSettings, scored: list[readers.Source]) -> None:
    name = settings.cell_type
    if name and not any(name in source.obs for source in scored):
        columns = {source.name: list(source.obs.columns) for source in scored}
        raise ValueError(
            f"no column {name!r} in .obs of the files to score on (there are: {columns}); set "
            "data.cell_type to one of them, or to '' where no cell has a label"
        )


def gene_ids(
    sources: list[readers.Source], gene_names: str, given: Vocabulary | None
) -> dict[str, np.ndarray]:
    """Gene ids of each file's columns, by the file's name; None where a column has none.

    Args:
      sources: the files.
      gene_names: path of a table of symbols, or "".
      given: a vocabulary whose ids symbols should meet; None takes those that files name.

    Raises:
      ValueError: files (or a file and the vocabulary) of two species, or of ids and symbols.
    """
    renamed = given.renamed if given else {}
    ids = {s.name: vocabulary.gene_ids(s.genes, None, renamed) for s in sources}
    if gene_names:
        ensembl = {i for i in _union(ids) if vocabulary.ENSEMBL.match(i)}
        table = vocabulary.read_gene_names(gene_names, given.genes if given else ensembl)
        ids = {s.name: vocabulary.gene_ids(s.genes, table, renamed) for s in sources}
        for source in (s for s in sources if not any(ids[s.name])):
            raise ValueError(
                f"{source.path}: {gene_names} has none of its genes (such as {source.genes[0]!r}); "
                "give a table of its symbols, or name their column by data.gene_column"
            )
    vocabulary.check_one_kind(ids | ({"the vocabulary": given.genes} if given else {}))
    return ids


def _annotations(sources, settings) -> pd.DataFrame:
    """One row for each cell that is kept: where it stands, and what is known of it."""
    frames = []
    for source in sources:
        kept = _kept(source, settings.keep)
        obs = source.obs.iloc[kept]
        frame = pd.DataFrame({"row": kept, "dataset": source.name})
        frame["cell_id"] = [f"{source.name}:{name}" for name in obs.index]
        for name in ANNOTATIONS:
            column = getattr(settings, name)
            frame[name] = _text(obs[column]) if column in obs else ""
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _text(annotation: pd.Series) -> np.ndarray:
    return annotation.astype(object).where(annotation.notna(), "").astype(str).to_numpy()


def _union(ids: dict[str, np.ndarray]) -> list[str]:
    return sorted({i for of_file in ids.values() for i in of_file if i is not None})


def _kept(source: readers.Source, keep: dict[str, dict[str, str]]) -> np.ndarray:
    """Rows of a file whose annotations have the values that `keep` asks for."""
    chosen = np.ones(len(source.obs), bool)
    for column, value in keep.get(source.name, {}).items():
        if column not in source.obs:
            raise ValueError(
                f"{source.path}: data.keep asks for {column} == {value!r}, but .obs has no such "
                f"column (there are: {list(source.obs.columns)})"
            )
        chosen &= (source.obs[column].astype(str) == value).to_numpy()
    if not chosen.any():
        raise ValueError(f"{source.path}: data.keep leaves no cell ({keep[source.name]})")
    return np.flatnonzero(chosen)


def _from_pool(sources, ids, union, of, leaked, obs, settings, folder) -> Vocabulary:
    """Vocabulary of the pool: genes found in at least min_cells of its cells, their medians."""
    sketch = medians.Sketch(len(union))
    for piece in of:
        sketch.add_sparse(*_numbers(piece.scanned(folder), "places", "cells"))

    def chunks(rows: np.ndarray) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
        for source in sources:
            mine = obs[rows & (obs["dataset"] == source.name).to_numpy()]["row"].to_numpy()
            places = pieces.positions(ids[source.name], union)
            for _, counts in readers.chunks(source, mine):
                total = np.asarray(counts.sum(1)).ravel()
                yield total, pieces.select(counts, places, len(union))

    for totals, counts in chunks(leaked):
        sketch.add(counts, totals, sign=-1)
    kept = np.flatnonzero(sketch.detected() >= max(settings.min_cells, 1))
    if not len(kept):
        raise ValueError(
            f"no gene is found in {settings.min_cells} cells of the training pool; lower "
            "data.min_cells"
        )
    if settings.medians == "exact":
        pool = (obs["split"] == "pool").to_numpy()
        middle = medians.exact(sketch, kept, lambda: chunks(pool), MEDIAN_VALUES)
    else:
        middle = sketch.medians(kept)
    return Vocabulary(tuple(union[k] for k in kept), middle)


def encode(
    source: readers.Source, ids: np.ndarray, genes: Vocabulary
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rank tokens of a file's cells, chunk by chunk.

    Args:
      source: the file.
      ids: gene ids of its columns, None where a column has none.
      genes: the vocabulary.

    Yields:
      rows [n], tokens uint16 (cells one after another), lengths [n].
    """
    places = pieces.positions(ids, genes.genes)
    for rows, counts in readers.chunks(source):
        mapped = pieces.select(counts, places, len(genes.genes))
        totals = np.asarray(counts.sum(1)).ravel()
        yield rows, *ranks.rank_tokens(mapped, totals, genes.medians, len(genes.special))
