"""A config -> the corpus of its cells, opened, built or simulated; and what is in it, in words."""

import dataclasses
import pathlib
import sys

from scaling.corpus import build, simulate
from scaling.corpus.shards import Corpus
from scaling.settings import Settings


def corpus_of(settings: Settings, workdir: pathlib.Path, built: str | None = None) -> Corpus:
    """Opens a built corpus, or builds that of a config; simulates cells where no file is named."""
    if built:
        return Corpus.open(pathlib.Path(built))
    data = settings.data
    if not data.h5ad:
        simulated = workdir / "simulated.h5ad"
        if not simulated.exists():
            workdir.mkdir(parents=True, exist_ok=True)
            print("data.h5ad names no file: cells are simulated", file=sys.stderr)
            simulate.simulate(simulated, settings.simulation)
        elif simulate.settings_of(simulated) != settings.simulation:
            raise ValueError(
                f"{simulated} was simulated with other settings; remove it, or give another "
                "--workdir"
            )
        data = dataclasses.replace(data, h5ad=str(simulated))
    return build.build(data, workdir / "corpus")


def describe(corpus: Corpus) -> str:
    """What is in a corpus, in a few lines: cells, genes, what was left out and why."""
    m = corpus.manifest
    cells, by = m["cells"], m["split_by"]
    held_out = corpus.obs[corpus.obs["split"] == "held_out"]
    groups = sorted(held_out[{"file": "dataset"}.get(by, by)].unique()) if by != "cell" else []
    named = f" ({', '.join(groups)})" if groups else ""
    lines = [
        f"corpus {corpus.folder}: {cells.get('pool', 0)} training cells, "
        f"{len(held_out)} ({len(held_out) / len(corpus.obs):.0%}) held out by {by}{named}; "
        f"{m['vocabulary']['tokens']} tokens in the vocabulary",
        f"identical count vectors: {m['identical_across_split']} training cells equal a held-out "
        f"cell and are kept from training; {m['identical_in_pool']} repeat another training cell",
    ]
    for file in m["files"]:
        if "wrong_lengths" in file:
            lines.append(
                f"  {file['name']}: {file['cells']} cells of ready tokens, without counts: no HVG, "
                f"PCA or batch scores; {file['wrong_lengths']} state another length than theirs; "
                f"left out: {file['cells_filtered']} cells by filter or draw, "
                f"{file['cells_without_genes']} without genes, {file['cells_kept_from_training']} "
                "from training alone"
            )
            continue
        lines.append(
            f"  {file['name']}: {file['cells']} cells from .{file['matrix']}, "
            f"{file['genes_mapped']} of {file['genes']} genes and "
            f"{file['counts_covered']:.1%} of counts in the vocabulary; genes without an id: "
            f"{file['genes_without_id']}, summed with others: {file['genes_summed']}; left out: "
            f"{file['cells_filtered']} cells by filter or draw, {file['cells_without_genes']} "
            f"without genes of the vocabulary ({file['cells_without_counts']} without counts), "
            f"{file['cells_kept_from_training']} from training alone"
        )
    if m["keep_without_file"]:
        lines.append(f"  data.keep names files that are not there: {m['keep_without_file']}")
    return "\n".join(lines)
