"""One or several stores of counts -> a corpus folder: vocabulary, tokens, annotations, manifest."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm import tqdm

from scaling.corpus import ranks, readers, shards, subsets, vocabulary
from scaling.corpus.vocabulary import TARGET_SUM, Vocabulary, summing_columns

FORMAT = 1
MEDIAN_BYTES = 2**28  # values of as many genes at a time as fit are held for their medians
ANNOTATIONS = ("cell_type", "donor", "batch")


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
    min_cells: int
    cell_type: str
    donor: str
    batch: str
    keep: dict[str, dict[str, str]]
    held_out: float
    split_seed: int
    cells_per_shard: int


def build(settings: CorpusSettings, out: pathlib.Path) -> shards.Corpus:
    """Builds the corpus, or opens it where the same settings built it before.

    The training pool comes from `h5ad`; held out are the cells of `score_on`, or a share of the
    pool's donors (else batches, else cells). Vocabulary and medians see the pool alone, unless a
    vocabulary is given. A pool cell whose counts equal a held-out cell's is kept from training.
    The folder appears when all of it is written, or not at all.

    Raises:
      ValueError: bad input, naming the file; or the folder holds another corpus.
    """
    pool_files = readers.expand(settings.h5ad)
    files = readers.expand(",".join(filter(None, (settings.h5ad, settings.score_on))))
    if not pool_files:
        raise ValueError("data.h5ad is empty; name the stores of counts to train on")
    if both := set(pool_files) & set(readers.expand(settings.score_on)):
        path = min(both, key=str)
        raise ValueError(f"{path} is in data.h5ad and in data.score_on; take it out of one")
    stamp = {
        "settings": dataclasses.asdict(settings),
        "inputs": [readers.stamp(path) for path in files],
    }
    if out.exists():
        return _reopen(out, stamp)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _build(settings, files, set(pool_files), stamp, partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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


def _build(settings, files, pool_files, stamp, folder: pathlib.Path) -> None:
    names = ("layer", "gene_column", "primary_only")
    options = {name: getattr(settings, name) for name in names}
    sources = [readers.open_source(path, **options) for path in files]
    scored = [s for s in sources if not settings.score_on or s.path not in pool_files]
    _check_label(settings, scored)
    given = Vocabulary.load(pathlib.Path(settings.vocabulary)) if settings.vocabulary else None
    ids = gene_ids(sources, settings.gene_names, given)
    obs = _scan(sources, ids, settings)
    if settings.score_on:
        held_out = ~obs["dataset"].isin({readers.name_of(p) for p in pool_files}).to_numpy()
        split_by = "file"
    else:
        held_out, split_by = subsets.hold_out(obs, settings.held_out, settings.split_seed)
    obs["split"] = np.where(held_out, "held_out", "pool")
    leaked = ~held_out & obs["fingerprint"].isin(obs["fingerprint"][held_out]).to_numpy()
    obs.loc[leaked, "split"] = "duplicate"
    genes = given or _from_pool(sources, ids, obs, settings.min_cells)
    genes.save(folder / shards.VOCABULARY)
    obs, names, reports = _write(sources, ids, genes, obs, settings, folder)
    for split, remedy in (("pool", "data.h5ad"), ("held_out", "data.score_on")):
        if not (obs["split"] == split).any():
            raise ValueError(
                f"{settings.h5ad}: no {split} cell is left with a gene of the vocabulary; give "
                f"more cells with {remedy}, or another data.vocabulary"
            )
    obs.to_parquet(folder / shards.OBS, index=False)
    frames = [pd.DataFrame({"dataset": name, "gene_id": of_file}) for name, of_file in ids.items()]
    pd.concat(frames).to_parquet(folder / shards.GENES, index=False)
    names = [shards.VOCABULARY, shards.OBS, shards.GENES, *names]
    manifest = {
        "format": FORMAT,
        **stamp,
        "vocabulary": {"hash": genes.hash, "tokens": len(genes)},
        "cells": obs["split"].value_counts().to_dict(),
        "tokens": int(obs["length"].sum()),
        "split_by": split_by,
        "identical_across_split": int((obs["split"] == "duplicate").sum()),
        "identical_in_pool": int(obs["fingerprint"][obs["split"] == "pool"].duplicated().sum()),
        "files": reports,
        "keep_without_file": sorted(set(settings.keep) - {s.name for s in sources}),
        "checksums": {name: shards.file_checksum(folder / name) for name in names},
    }
    (folder / shards.MANIFEST).write_text(json.dumps(manifest, indent=1))


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
    """
    ids = {s.name: vocabulary.gene_ids(s.genes, None) for s in sources}
    if gene_names:
        ensembl = {i for i in _union(ids) if vocabulary.ENSEMBL.match(i)}
        table = vocabulary.read_gene_names(gene_names, given.genes if given else ensembl)
        ids = {s.name: vocabulary.gene_ids(s.genes, table) for s in sources}
        for source in (s for s in sources if not any(ids[s.name])):
            raise ValueError(
                f"{source.path}: {gene_names} has none of its genes (such as {source.genes[0]!r}); "
                "give a table of its symbols, or name their column by data.gene_column"
            )
    vocabulary.check_one_kind(ids)
    return ids


def _scan(sources, ids, settings) -> pd.DataFrame:
    """Reads every cell once: its annotations, total and the fingerprint of its counts."""
    frames = []
    union = _union(ids)
    for source in sources:
        columns = summing_columns(ids[source.name], union)
        kept = _kept(source, settings.keep)
        totals, prints = [], []
        with _progress(source, "checking") as bar:
            for rows, counts in readers.chunks(source, kept):
                totals.append(np.asarray(counts.sum(1)).ravel())
                prints += _fingerprints(counts @ columns)
                bar.update(len(rows))
        obs = source.obs.iloc[kept]
        frame = pd.DataFrame({"row": kept, "dataset": source.name})
        frame["cell_id"] = [f"{source.name}:{name}" for name in obs.index]
        for name in ANNOTATIONS:
            column = getattr(settings, name)
            frame[name] = _text(obs[column]) if column in obs else ""
        frame["total"], frame["fingerprint"] = np.concatenate(totals), prints
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


def _fingerprints(counts: sp.csr_matrix) -> list[str]:
    """Hash of each cell's (gene, count) pairs; equal across files where the counts are equal."""
    counts.sort_indices()
    prints = []
    for row in range(counts.shape[0]):
        part = slice(counts.indptr[row], counts.indptr[row + 1])
        pairs = np.stack([counts.indices[part], counts.data[part]]).astype("<i8")
        prints.append(hashlib.blake2b(pairs.tobytes(), digest_size=8).hexdigest())
    return prints


def _from_pool(sources, ids, obs: pd.DataFrame, min_cells: int) -> Vocabulary:
    """Vocabulary of the pool: genes found in at least min_cells of its cells, exact medians."""
    names = _union(ids)
    columns = {name: summing_columns(of_file, names) for name, of_file in ids.items()}
    detected = np.zeros(len(names), np.int64)
    for _, counts in _pool_counts(sources, obs, columns, "counting genes"):
        detected += counts.getnnz(axis=0)
    kept = np.flatnonzero(detected >= max(min_cells, 1))
    if not len(kept):
        raise ValueError(
            f"no gene is found in {min_cells} cells of the training pool; lower data.min_cells"
        )
    medians = np.zeros(len(kept))
    groups = np.cumsum(detected[kept]) * 8 // MEDIAN_BYTES
    for group in np.unique(groups):
        at = np.flatnonzero(groups == group)
        values = []
        for totals, counts in _pool_counts(sources, obs, columns, "medians"):
            part = counts[:, kept[at]].tocoo()
            values.append((part.col, part.data / totals[part.row] * TARGET_SUM))
        gene, value = (np.concatenate(v) for v in zip(*values, strict=True))
        order = np.lexsort((value, gene))
        ends = np.cumsum(detected[kept[at]])
        starts, value = ends - detected[kept[at]], value[order]
        medians[at] = (value[(starts + ends - 1) // 2] + value[(starts + ends) // 2]) / 2
    return Vocabulary(tuple(names[k] for k in kept), medians)


def encode(
    source: readers.Source, ids: np.ndarray, genes: Vocabulary, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, sp.csr_matrix, np.ndarray, np.ndarray]]:
    """Rank tokens of a file's cells, chunk by chunk.

    Args:
      source: the file.
      ids: gene ids of its columns, None where a column has none.
      genes: the vocabulary.
      rows: ascending rows to read; None reads all.

    Yields:
      rows [n], counts [n, genes of the file], tokens uint16 (cells one after another),
      lengths [n].

    Raises:
      ValueError: the file has no gene of the vocabulary.
    """
    columns = summing_columns(ids, genes.genes)
    if columns.nnz == 0:
        raise ValueError(
            f"{source.path}: none of its {len(source.genes)} genes (such as {source.genes[0]!r}) "
            f"is in the vocabulary (such as {genes.genes[0]!r}); map symbols with "
            "data.gene_names, or name the column with the ids by data.gene_column"
        )
    for chunk, counts in readers.chunks(source, rows):
        mapped = (counts @ columns).tocsr()
        mapped.sort_indices()
        totals = np.asarray(counts.sum(1)).ravel()
        yield chunk, counts, *ranks.rank_tokens(mapped, totals, genes.medians)


def _write(sources, ids, genes: Vocabulary, obs, settings, folder):
    """Tokens of every cell to shards; drops cells without a gene of the vocabulary."""
    writer = shards.ShardWriter(folder, settings.cells_per_shard)
    reports, lengths = [], np.zeros(len(obs), np.int64)
    for source in sources:
        mine = np.flatnonzero(obs["dataset"] == source.name)
        mapped = pd.Series(ids[source.name]).isin(genes.genes).to_numpy()
        covered, done = 0.0, 0
        rows = obs["row"].to_numpy()[mine]
        with _progress(source, "ranking") as bar:
            for chunk, counts, tokens, length in encode(source, ids[source.name], genes, rows):
                writer.write(tokens, length)
                lengths[mine[done : done + len(chunk)]] = length
                covered += counts[:, mapped].sum()
                done += len(chunk)
                bar.update(len(chunk))
        reports.append({
            "name": source.name,
            "path": str(source.path),
            "matrix": source.matrix,
            "cells": len(mine),
            "cells_filtered": len(source.obs) - len(mine),
            "cells_without_genes": int((lengths[mine] == 0).sum()),
            "genes": len(source.genes),
            "genes_mapped": int(mapped.sum()),
            "counts_covered": float(covered / max(obs["total"].to_numpy()[mine].sum(), 1)),
        })
    writer.close()
    obs["length"] = lengths
    return obs[obs["length"] > 0].reset_index(drop=True), writer.names, reports


def _pool_counts(sources, obs, columns, what):
    """Yields (totals [n], counts [n, genes]) of the pool's cells, chunk by chunk."""
    for source in sources:
        mine = obs[(obs["dataset"] == source.name) & (obs["split"] == "pool")]
        if not len(mine):
            continue
        done = 0
        with _progress(source, what) as bar:
            for rows, counts in readers.chunks(source, mine["row"].to_numpy()):
                yield (
                    mine["total"].to_numpy()[done : done + len(rows)],
                    (counts @ columns[source.name]).tocsr(),
                )
                done += len(rows)
                bar.update(len(rows))


def _progress(source: readers.Source, what: str) -> tqdm:
    return tqdm(total=len(source.obs), desc=f"{what} {source.name}", unit="cells", leave=False)
