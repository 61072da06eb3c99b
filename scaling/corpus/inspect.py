"""A corpus folder -> what is wrong with its files, and what it holds."""

import json
import pathlib

import numpy as np
import pandas as pd
from tqdm import tqdm

from scaling.corpus import annotations
from scaling.corpus.shards import MANIFEST, OBS, Corpus, file_checksum

BINS = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 65536)  # of a histogram of lengths


def verify(folder: pathlib.Path) -> list[str]:
    """Faults of a corpus, each naming its file; empty where every byte is as it was built.

    Raises:
      ValueError: the folder has no readable manifest.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected, shards = manifest["checksums"], manifest["shards"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / MANIFEST}: no manifest of a corpus ({error})") from error
    faults, tokens = [], {shard["name"]: shard["tokens"] for shard in shards}
    for name, checksum in tqdm(expected.items(), desc="verifying", unit="files", leave=False):
        path = folder / name
        if not path.is_file():
            faults.append(f"{path} is missing")
        elif name in tokens and path.stat().st_size != 2 * tokens[name]:
            size, wanted = path.stat().st_size, 2 * tokens[name]
            faults.append(f"{path} has {size} bytes, {wanted} were written")
        elif file_checksum(path) != checksum:
            faults.append(f"{path} is not the file that was built: its SHA-256 differs")
    files = [*folder.glob("tokens-*"), *folder.glob("expression-*")]
    stray = {path.name for path in files} - set(expected)
    faults += [f"{folder / name} is of another build" for name in sorted(stray)]
    return faults or _contents(Corpus.open(folder))


def _contents(corpus: Corpus) -> list[str]:
    """Faults that whole files can still have together."""
    faults, length = [], corpus.obs["length"].to_numpy()
    counts = corpus.obs["split"].value_counts().to_dict()
    if counts != corpus.manifest["cells"] or length.sum() != corpus.manifest["tokens"]:
        faults.append(f"{corpus.folder / OBS} does not hold the cells that {MANIFEST} counts")
    for shard in corpus.manifest["shards"]:
        tokens = np.fromfile(corpus.folder / shard["name"], "<u2")
        first, end = len(corpus.vocabulary.special), len(corpus.vocabulary)
        if len(tokens) and not first <= tokens.min() <= tokens.max() < end:
            faults.append(f"{corpus.folder / shard['name']} has tokens that are no gene")
    return faults


def info(corpus: Corpus) -> str:
    """Text: cells by split, annotation and length, genes, files."""
    obs, manifest = corpus.obs, corpus.manifest
    lines = [
        f"{corpus.folder}: {len(obs):,} cells, {manifest['tokens']:,} gene tokens, "
        f"{len(corpus.vocabulary.genes):,} genes in the vocabulary {corpus.vocabulary.hash}",
        f"shards: {len(manifest['shards'])}; split by {manifest['split_by']}; "
        f"identical cells: {manifest['identical_in_pool']} within the pool, "
        f"{manifest['identical_across_split']} kept from training",
    ]
    length = obs["length"].to_numpy()
    lines.append(
        f"genes of a cell: median {np.median(length):,.0f}, mean {length.mean():,.1f}, "
        f"{length.min():,} to {length.max():,}"
    )
    counts, _ = np.histogram(length, BINS)
    for low, high, count in zip(BINS[:-1], BINS[1:], counts, strict=True):
        if count:
            bar = "#" * -(-count * 40 // counts.max())
            lines.append(f"  {low:>6,} to {high - 1:>6,}  {count:>12,}  {bar}")
    for column in ("split", "dataset", *annotations.COLUMNS):
        lines += _by(obs[column], column)
    return "\n".join(lines)


def _by(annotation: pd.Series, name: str, most: int = 30) -> list[str]:
    counts = annotation.value_counts()
    lines = [f"cells by {name}: {len(counts)}"]
    for value, count in counts.head(most).items():
        lines.append(f"  {count:>12,}  {value or '(not known)'}")
    if len(counts) > most:
        lines.append(f"  {counts.iloc[most:].sum():>12,}  in {len(counts) - most} more")
    return lines
