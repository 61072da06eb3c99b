"""One or several stores of counts -> a corpus folder: vocabulary, tokens, annotations, manifest."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterator

import filelock
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scaling.corpus import (
    annotations,
    columns,
    coverage,
    dictionaries,
    medians,
    pieces,
    readers,
    shards,
    subsets,
    workers,
)
from scaling.corpus.pieces import Piece, Work
from scaling.corpus.vocabulary import Vocabulary

MEDIAN_VALUES = 2**25  # held at once for exact medians
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
    draw: int
    cells_per_shard: int
    workers: int
    scheduler: str
    expression: bool = False
    tissue: str = "tissue"
    disease: str = "disease"
    sex: str = "sex"

    def __post_init__(self):
        if self.medians not in ("sketch", "exact"):
            raise ValueError(f"data.medians is {self.medians!r}; one of sketch, exact")
        if min(self.workers, self.cells_per_shard) < 1:
            raise ValueError("data.workers and data.cells_per_shard must be at least 1")
        if self.draw and self.score_on:
            raise ValueError("data.draw holds out cells that it draws; leave data.score_on empty")

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
    tables = [pathlib.Path(path) for path in (settings.gene_names, settings.vocabulary) if path]
    inputs = [*files, *(path for path in tables if path.exists())]
    stamp = {"settings": settings.content(), "inputs": [readers.stamp(path) for path in inputs]}
    if out.exists():
        return _reopen(out, stamp)
    with _alone(out, stamp) as partial:
        if out.exists():  # another build ended after the look above
            shutil.rmtree(partial)
            return _reopen(out, stamp)
        try:
            _build(settings, files, set(pool_files), stamp, partial)
            _check_unchanged(stamp["inputs"], inputs)
        except ValueError:
            shutil.rmtree(partial)
            raise
        (partial / STAMP).unlink()
        partial.rename(out)
        (out / LOCK).unlink()
    return shards.Corpus.open(out)


def _reopen(out: pathlib.Path, stamp: dict) -> shards.Corpus:
    corpus = shards.Corpus.open(out)
    for part, value in json.loads(json.dumps(stamp)).items():
        if (held := corpus.manifest[part]) != value:
            told = f"{held}, now {value}"
            if isinstance(held, dict) and isinstance(value, dict):
                fields = sorted(k for k in held | value if held.get(k) != value.get(k))
                told = "; ".join(f"{k} was {held.get(k)!r}, now {value.get(k)!r}" for k in fields)
            raise ValueError(
                f"{out} was built with other {part} ({told}); give another --workdir or remove the "
                "folder"
            )
    return corpus


def _check_unchanged(before: list[list], inputs: list) -> None:
    for path, stamp in zip(inputs, before, strict=True):
        if readers.stamp(path) != stamp:
            raise ValueError(f"{path} has changed while it was read; build again, from whole files")


@contextlib.contextmanager
def _alone(out: pathlib.Path, stamp: dict) -> Iterator[pathlib.Path]:
    """The folder of unfinished work, for one build at a time; emptied where the stamp differs."""
    partial = out.with_name(out.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(partial / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ValueError(
            f"another build is writing {out}; wait for it, or give another --workdir"
        ) from error
    try:
        content = json.dumps({"format": shards.FORMAT, **stamp})
        path = partial / STAMP
        if not path.exists() or path.read_text() != content:
            for left in partial.iterdir():
                if left.name != LOCK:
                    left.unlink()
            path.write_text(content)
        yield partial
    finally:
        lock.release()


def _build(settings, files, pool_files, stamp, folder: pathlib.Path) -> None:
    names = ("layer", "gene_column", "primary_only")
    options = {name: getattr(settings, name) for name in names}
    sources = [readers.open_source(path, **options) for path in files]
    scored = [s for s in sources if not settings.score_on or s.path not in pool_files]
    annotations.check_label(settings.cell_type, scored)
    given = dictionaries.given(settings.vocabulary)
    for source in (s for s in sources if s.tokenised and not given):
        raise ValueError(
            f"{source.path} has ready tokens, which mean nothing without the vocabulary that they "
            "are of; name it by data.vocabulary"
        )
    if settings.expression and (ready := [s.path for s in sources if s.tokenised]):
        raise ValueError(
            f"{ready[0]} has ready tokens, which have no counts: neither data.expression nor any "
            "model.encoding but ranks can be had of it; give the cells' counts, or ranks alone"
        )
    ids = columns.gene_ids(sources, settings.gene_names, given)
    named = {name: getattr(settings, name) for name in annotations.COLUMNS}
    rows = [annotations.kept(source, settings.keep) for source in sources]
    if settings.draw:
        chance = settings.held_out, settings.split_seed
        rows, held_out = subsets.draw(rows, settings.draw, *chance)
    obs = annotations.table(sources, named, rows)
    if settings.draw:
        split_by = "cell"
    elif settings.score_on:
        held_out = ~obs["dataset"].isin({readers.name_of(p) for p in pool_files}).to_numpy()
        split_by = "file"
    else:
        held_out, split_by = subsets.hold_out(obs, settings.held_out, settings.split_seed)
    of = _pieces(sources, obs, ~held_out, settings.cells_per_shard)
    union = None if given else tuple(columns.union(ids))
    by = {"workers": settings.workers, "scheduler": settings.scheduler}

    def work(scan: bool, sketch_of, genes: Vocabulary | None) -> dict[str, Work]:
        of = scan, sketch_of, genes, settings.expression
        return {s.name: Work(s, folder, ids[s.name], *of) for s in sources}

    left = [p for p in of if not p.scanned(folder).exists()]
    workers.run(pieces.read, left, work(True, union, given), "reading cells", **by)
    found = [_numbers(p.scanned(folder), "totals", "fingerprints") for p in of]
    obs["total"], obs["fingerprint"] = (np.concatenate(part) for part in zip(*found, strict=True))
    _name_tokenised(obs, {s.name for s in sources if s.tokenised})
    obs["split"] = np.where(held_out, "held_out", "pool")
    leaked = ~held_out & obs["fingerprint"].isin(obs["fingerprint"][held_out]).to_numpy()
    obs.loc[leaked, "split"] = "duplicate"
    genes = given or _from_pool(sources, ids, union, of, leaked, obs, settings, folder)
    genes.save(folder / shards.VOCABULARY)
    covered = {
        s.name: {"wrong_lengths": int(_sum(s, "wrong_lengths", of, folder))}
        if s.tokenised
        else coverage.report(ids[s.name], _sum(s, "columns", of, folder), genes)
        for s in sources
    }
    for source in (s for s in sources if not s.tokenised):
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
            | ({"expression": p.expression} if settings.expression else {})
            for p, (lengths, _) in zip(of, ranked, strict=True)
        ],
        "checksums": {name: shards.file_checksum(folder / name) for name in names}
        | {p.shard: str(checksum) for p, (_, checksum) in zip(of, ranked, strict=True)}
        | (_of_expression(of, folder) if settings.expression else {}),
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


def _of_expression(of: list[Piece], folder: pathlib.Path) -> dict[str, str]:
    """Checksums of the files of expression."""
    return {p.expression: str(*_numbers(p.ranked(folder), "checksum_of_expression")) for p in of}


def _sum(source, name: str, of: list[Piece], folder: pathlib.Path) -> np.ndarray:
    """Sum of an array over a file's pieces; zeros where none of its cells was drawn."""
    mine = [p for p in of if p.dataset == source.name]
    start = 0 if source.tokenised else np.zeros(len(source.genes))
    return sum((_numbers(p.scanned(folder), name)[0] for p in mine), start)


def _name_tokenised(obs: pd.DataFrame, names: set[str]) -> None:
    """Cells of ready tokens have no names: theirs are made of fingerprint and row."""
    mine = obs["dataset"].isin(names)
    parts = obs.loc[mine, ["dataset", "fingerprint", "row"]].itertuples(index=False)
    obs.loc[mine, "cell_id"] = [f"{name}:{found:016x}-{row}" for name, found, row in parts]


def _report(source, obs) -> dict:
    """What became of a file's cells.

    `cells` are read and `cells_filtered` left out by data.keep. Of those read,
    `cells_without_genes` are dropped, of which `cells_without_counts` have no count at all;
    `cells_kept_from_training` stay, but stand in no subset, as they equal a held-out cell.
    `wrong_lengths`, of ready tokens: cells whose stated length is not theirs.
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
    if not (obs["split"] == "pool").any():
        raise ValueError(
            f"{settings.h5ad}: no training cell is left: {leaked.sum()} equal a held-out cell; is "
            "one file named twice, or data.held_out too large?"
        )
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
