"""Run, or Geneformer's weights, + cells -> a copy of their `.h5ad` with embeddings in `.obsm`.

python -m experiments.embed --checkpoint=RUN --h5ad=CELLS --out=COPY [--name=NAME] [--layer=-2]
[--pool=genes]; with a folder of config.json and model.safetensors also --vocabulary=DICTIONARIES
"""

import pathlib

from absl import app, flags

from experiments.launch import parse, report_errors
from scaling.corpus import columns, readers
from scaling.evaluate import embed
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
GENE_NAMES = flags.DEFINE_string("data.gene_names", "", "CSV: gene_name, ensembl_id; for symbols")
GENE_COLUMN = flags.DEFINE_string("data.gene_column", "", "column of .var with ids; or the index")
COUNTS = flags.DEFINE_string("data.layer", "", "layer with raw counts; '' looks in .X, then .raw.X")


def main() -> str:
    """Embeds every cell of a file with a run's last checkpoint, or with given weights."""
    params, model, vocabulary = runs.encoder(pathlib.Path(CHECKPOINT.value), VOCABULARY.value)
    source = readers.open_source(H5AD.value, layer=COUNTS.value, gene_column=GENE_COLUMN.value)
    ids = columns.gene_ids([source], GENE_NAMES.value, vocabulary)[source.name]
    out = pathlib.Path(OUT.value)
    found, covered = embed.embed_file(
        params, model, LAYER.value, vocabulary, source, ids, out, NAME.value, POOL.value
    )
    known = "" if covered is None else f"; {covered:.1%} of the counts are of genes it knows"
    return f"{out}: {found.shape[0]} cells x {found.shape[1]} in .obsm['X_{NAME.value}']{known}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(main), flags_parser=parse)
