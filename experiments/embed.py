"""Run, or Geneformer's weights, + cells -> a copy of their `.h5ad` with embeddings in `.obsm`.

python -m experiments.embed --checkpoint=RUN --h5ad=CELLS --out=COPY [--name=NAME] [--layer=-2]
[--pool=genes] [--fill=0.15 [--read=Q] [--order=one_by_one]] [--delete=GENES] [--overexpress=GENES]
With a folder of config.json and model.safetensors also --vocabulary=DICTIONARIES
"""

import pathlib

from absl import app, flags

from experiments.launch import parse, report_errors
from scaling.corpus import columns, readers
from scaling.evaluate import decode, embed, embed_file
from scaling.geneformer import runs

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "a run's folder, RUN/checkpoints/STEP, or Geneformer's", required=True
)
VOCABULARY = flags.DEFINE_string(
    "vocabulary", "", "of Geneformer's weights: folder of its dictionaries, or a vocabulary.json"
)
H5AD = flags.DEFINE_string("h5ad", None, "cells to embed, raw counts", required=True)
OUT = flags.DEFINE_string("out", None, "the copy to write", required=True)
NAME = flags.DEFINE_string("name", "scaling", "embeddings go to .obsm['X_<name>']")
LAYER = flags.DEFINE_integer("layer", -2, "layer whose states are averaged; -2: before the last")
POOL = flags.DEFINE_enum("pool", "genes", embed.POOLS, "mean of the genes' states, or <cls>'s")
FILL = flags.DEFINE_float("fill", 0.0, "share of genes to hide and fill: .uns['filled_<name>']")
READ = flags.DEFINE_enum("read", "Q", ("P", "Q"), "what they are read from")
ORDER = flags.DEFINE_enum("order", "one_by_one", decode.ORDERS, "in which they are put in")
DELETE = flags.DEFINE_list("delete", [], "genes to delete; shifts go to .obsm['delete_<name>']")
OVEREXPRESS = flags.DEFINE_list("overexpress", [], "likewise, to put at the best rank")
GENE_NAMES = flags.DEFINE_string("data.gene_names", "", "CSV: gene_name, ensembl_id; for symbols")
GENE_COLUMN = flags.DEFINE_string("data.gene_column", "", "column of .var with ids; or the index")
COUNTS = flags.DEFINE_string("data.layer", "", "layer with raw counts; '' looks in .X, then .raw.X")


def main() -> str:
    """Embeds every cell of a file with a run's last checkpoint, or with given weights."""
    if not FILL.value and (flags.FLAGS["read"].present or flags.FLAGS["order"].present):
        raise ValueError("--read and --order are of --fill, which is 0; give a share of the genes")
    params, model, vocabulary = runs.encoder(pathlib.Path(CHECKPOINT.value), VOCABULARY.value)
    source = readers.open_source(H5AD.value, layer=COUNTS.value, gene_column=GENE_COLUMN.value)
    ids = columns.gene_ids([source], GENE_NAMES.value, vocabulary)[source.name]
    out = pathlib.Path(OUT.value)
    asked = embed_file.Also(
        FILL.value, READ.value, ORDER.value, DELETE.value, OVEREXPRESS.value, GENE_NAMES.value
    )
    found = embed_file.embed_file(
        params, model, LAYER.value, vocabulary, source, ids, out, NAME.value, POOL.value, asked
    )
    cells, width = found.embedding.shape
    told = f"{out}: {cells} cells x {width} in .obsm['X_{NAME.value}']"
    if found.counts_covered is not None:
        told += f"; {found.counts_covered:.1%} of the counts are of genes it knows"
    if found.accuracy is not None:
        told += f"; {found.accuracy:.1%} of the hidden genes were put in rightly"
    for kind, shifts in found.shifts.items():
        without = shifts.isna().sum()
        rest = ", ".join(f"{gene} {count}" for gene, count in without.items() if count)
        told += f"; cells without a shift by {kind}: {rest}" if rest else ""
    return told


if __name__ == "__main__":
    app.run(lambda _: report_errors(main), flags_parser=parse)
