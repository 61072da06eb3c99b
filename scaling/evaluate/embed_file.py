"""Checkpoint + a file of cells -> its copy with embeddings, genes filled in, and shifts."""

import dataclasses
import pathlib
import shutil
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from scaling.corpus import coverage, pieces, readers
from scaling.corpus.encodings import Cells, arrange, by_cell
from scaling.corpus.vocabulary import Vocabulary, read_gene_names
from scaling.evaluate import decode, in_silico
from scaling.evaluate.embed import check_layer, embed_cells
from scaling.pretrain import masking
from scaling.pretrain.model import ModelSettings


@dataclasses.dataclass(frozen=True)
class Also:
    """What is asked of the cells beside their embedding.

    Attributes:
      fill: share of each cell's genes to hide and have the model put in; 0.0 for none.
      read, order: see `decode.fill`.
      delete, overexpress: genes, see `in_silico.shifts`.
      gene_names: CSV with the columns gene_name and ensembl_id, for genes given as symbols.
    """

    fill: float = 0.0
    read: decode.Reading = "Q"
    order: decode.Order = "one_by_one"
    delete: Sequence[str] = ()
    overexpress: Sequence[str] = ()
    gene_names: str = ""

    def __post_init__(self):
        if not 0 <= self.fill < 1:
            raise ValueError(f"--fill is {self.fill}; give a share of the genes, 0 to below 1")

    def tokens(self, genes: Sequence[str], vocabulary: Vocabulary) -> list[int]:
        """Tokens of genes; refuses those that the vocabulary lacks."""
        ids, token = read_gene_names(self.gene_names, vocabulary.genes), vocabulary.token
        if unknown := [gene for gene in genes if ids.get(gene, gene) not in token]:
            named = f"and those that {self.gene_names} names"
            if not self.gene_names:
                named = "and others, and symbols with a table of names (--data.gene_names)"
            raise ValueError(
                f"the model knows no gene {', '.join(unknown)}; it knows {vocabulary.genes[0]!r} "
                + named
            )
        return [token[ids.get(gene, gene)] for gene in genes]


class Embedded(NamedTuple):
    """What was found.

    Attributes:
      embedding: float32 [cells, D].
      counts_covered: share of the file's counts in the vocabulary; None of ready tokens.
      accuracy: share of the hidden genes that were put in rightly; None where none was hidden.
      shifts: by kind, [cells, genes]; NaN where a gene to delete is not among those that the model
        reads of the cell, the best ranks that fit.
    """

    embedding: np.ndarray
    counts_covered: float | None
    accuracy: float | None
    shifts: dict[str, pd.DataFrame]


def embed_file(
    params: dict,
    model: ModelSettings,
    layer: int,
    vocabulary: Vocabulary,
    source: readers.Source,
    ids: np.ndarray,
    out: pathlib.Path,
    name: str,
    pool: str = "genes",
    also: Also = Also(),
) -> Embedded:
    """Writes a copy of an `.h5ad` with the embeddings in `.obsm["X_<name>"]`.

    What was filled in is a table in `.uns["filled_<name>"]`: cell, rank (place, in the encoding
    "counts"), its gene, the one put in.
    Shifts are tables in `.obsm["delete_<name>"]` and `.obsm["overexpress_<name>"]`, a column per
    gene.

    Of another store: an `.h5ad` with the cells' annotations and embeddings, without counts. Cells
    without a gene of the vocabulary get NaN. The input stays as it is.

    Args:
      params, model, layer: see `embed_cells`.
      vocabulary: that the model was trained with.
      source: the file, opened.
      ids: gene ids of its columns.
      out: the copy; must not exist.
      name: of the embedding.
      pool: see `embed_cells`.
      also: what else is asked.

    Raises:
      ValueError: the copy exists, the vocabulary covers too little of the file, it lacks a gene
        that is asked for, or the file has no counts and the model's encoding reads them.
    """
    if out.exists() or not out.parent.is_dir():
        state = "exists" if out.exists() else "lies in a folder that does not exist"
        raise ValueError(f"{out} {state}; name another --out")
    check_layer(model, layer)
    if not name or "/" in name:
        raise ValueError(f"{name!r} cannot name an embedding; give a --name without '/'")
    keys = {"X": ("obsm", f"X_{name}"), "filled": ("uns", f"filled_{name}")}
    keys |= {kind: ("obsm", f"{kind}_{name}") for kind in in_silico.KINDS}
    _refuse_taken(source, keys.values())
    covered = {"counts_covered": None}
    if not source.tokenised:
        covered = coverage.report(ids, coverage.gene_totals(source), vocabulary)
        coverage.check(source, covered, vocabulary)
    found = _computed(params, model, layer, vocabulary, source, ids, pool, also)
    _write(source, out, {keys[what]: table for what, table in found.items()})
    accuracy, filled = None, found.get("filled")
    if filled is not None and len(filled):
        accuracy = float((filled["gene"] == filled["filled"]).mean())
    shifts = {kind: found[kind] for kind in in_silico.KINDS if kind in found}
    return Embedded(found["X"], covered["counts_covered"], accuracy, shifts)


def _refuse_taken(source: readers.Source, keys: Iterable[tuple[str, str]]) -> None:
    """Before anything is computed; a file that would get all but one table is refused too."""
    if not source.is_h5ad:
        return
    with h5py.File(source.path) as file:
        for where, key in keys:
            if where in file and key in file[where]:
                raise ValueError(
                    f"{source.path} has .{where}[{key!r}] already; give another --name"
                )


def _computed(params, model, layer, vocabulary, source, ids, pool, also):
    """Embeddings ("X"), shifts by kind, and what was "filled" in, as they are written."""
    cells, special = source.obs.index, len(vocabulary.special)
    tables = {"X": np.full((len(cells), model.width), np.nan, np.float32)}
    genes = {kind: also.tokens(getattr(also, kind), vocabulary) for kind in in_silico.KINDS}
    genes = {kind: tokens for kind, tokens in genes.items() if tokens}
    for kind, tokens in genes.items():
        tables[kind] = np.full((len(cells), len(tokens)), np.nan, np.float32)
    filled = []
    with tqdm(total=len(cells), desc=f"embedding {source.name}", unit="cells") as bar:
        wanted = model.encoding != "ranks"
        for rows, tokens, lengths, beside in pieces.encode(source, ids, vocabulary, wanted):
            real = np.flatnonzero(lengths)
            if len(real):
                of_cells = by_cell(tokens, lengths), by_cell(beside, lengths)
                block = arrange(model.encoding, *of_cells, model.length, vocabulary.around).at(real)
                asked = params, model, layer
                tables["X"][rows[real]] = embed_cells(*asked, [block], special, pool)
                for kind, wanted in genes.items():
                    found = in_silico.shifts(*asked, block, special, wanted, kind, pool)
                    tables[kind][rows[real]] = found
                if also.fill:
                    filled.append(_filled(params, model, vocabulary, block, rows[real], also))
            bar.update(len(rows))
    for kind in genes:
        tables[kind] = pd.DataFrame(tables[kind], cells, getattr(also, kind))
    if filled:
        tables["filled"] = pd.concat(filled, ignore_index=True)
        row = tables["filled"].pop("row")
        tables["filled"].insert(0, "cell", cells.to_numpy(str)[row])
    return tables


def _write(source: readers.Source, out: pathlib.Path, found: dict[tuple[str, str], object]) -> None:
    """The copy with what was found, by group and key; whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    try:
        if source.is_h5ad:
            shutil.copyfile(source.path, partial)
        else:
            anndata.AnnData(obs=source.obs).write_h5ad(partial)
        with h5py.File(partial, "r+") as file:
            for (where, key), value in found.items():
                anndata.io.write_elem(file.require_group(where), key, value)
        partial.rename(out)
    finally:
        partial.unlink(missing_ok=True)


def _filled(params, model, vocabulary, block: Cells, rows_N, also: Also) -> pd.DataFrame:
    """Genes hidden by a draw of each cell's own, and those that the model puts there."""
    special, size = len(vocabulary.special), len(rows_N)
    masks = masking.MaskingSettings(also.fill, mask_share=1.0, random_share=0.0, draw_special=False)
    draw = masking.HELD_OUT_SEED, np.zeros(size, int), rows_N.astype(np.uint32)
    cells = masking.mask_cells(block.tokens_BxL, *draw, len(vocabulary), masks, special)
    hidden = block._replace(tokens_BxL=cells.inputs_BxL)
    put_NxL = decode.fill(params, model, hidden, special, read=also.read, order=also.order)
    cell, slot = np.nonzero(cells.labels_BxM >= 0)
    place, names = cells.slots_BxM[cell, slot], np.array(vocabulary.special + vocabulary.genes)
    return pd.DataFrame({
        "row": rows_N[cell],
        "rank": place - (len(vocabulary.around) > 0),
        "gene": names[cells.labels_BxM[cell, slot]],
        "filled": names[put_NxL[cell, place]],
    })
