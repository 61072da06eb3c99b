"""A folder of Geneformer's dictionaries (pickles) -> the vocabulary with its very tokens."""

import pathlib

import numpy as np

from scaling.corpus.plain_pickle import read_dict
from scaling.corpus.vocabulary import ENSEMBL, Vocabulary

TOKENS, MEDIANS, RENAMED = "token_dictionary", "gene_median_dictionary", "ensembl_mapping_dict"


def given(path: str) -> Vocabulary | None:
    """The vocabulary of `data.vocabulary`: none, another corpus or its file, or such a folder."""
    if not path:
        return None
    at = pathlib.Path(path)
    at = at / "vocabulary.json" if (at / "vocabulary.json").is_file() else at
    return read_vocabulary(at) if at.is_dir() else Vocabulary.load(at)


def read_vocabulary(folder: pathlib.Path) -> Vocabulary:
    """Reads `token_dictionary*.pkl` and `gene_median_dictionary*.pkl`, token for token.

    Genes with a median but no token are left out. `ensembl_mapping_dict*.pkl`, where there is
    one, says which gene has a retired id's counts; its symbols are not read, as symbols are
    mapped by an explicit table alone. `<cls>` and `<eos>` (V2) keep their tokens.

    Raises:
      ValueError: a file is missing, damaged, or more than strings and numbers; several files of
        one kind; tokens that are not 0, 1, 2, ...; a gene with a token but no median.
    """
    tokens_path = _only(folder, TOKENS)
    if tokens_path is None:
        raise ValueError(f"{folder}: no {TOKENS}*.pkl; name a folder of Geneformer's dictionaries")
    version = tokens_path.name.removeprefix(TOKENS)
    medians_path, renamed_path = _of(version, folder, MEDIANS), _of(version, folder, RENAMED)
    if medians_path is None:
        raise ValueError(f"{folder}: {tokens_path.name}, but no {MEDIANS}{version}; add it")
    tokens = read_dict(tokens_path, int)
    names = sorted(tokens, key=tokens.get)
    if [tokens[name] for name in names] != list(range(len(names))):
        raise ValueError(f"{tokens_path}: its tokens are not 0, 1, 2, ...; download it again")
    special = tuple(name for name in names if name.startswith("<"))
    if special != tuple(names[: len(special)]):
        raise ValueError(f"{tokens_path}: {special} do not come before all genes")
    genes = names[len(special) :]
    medians = read_dict(medians_path, float)
    if without := [gene for gene in genes if gene not in medians]:
        raise ValueError(
            f"{medians_path}: no median of {len(without)} genes of {tokens_path.name} (such as "
            f"{without[0]!r}); take both from one version of the model"
        )
    renamed = read_dict(renamed_path, str) if renamed_path else {}
    known = set(genes)
    retired = {
        old: new
        for old, new in renamed.items()
        if ENSEMBL.match(old) and new in known and old not in known
    }
    try:
        return Vocabulary(tuple(genes), np.array([medians[g] for g in genes]), special, retired)
    except ValueError as error:
        raise ValueError(f"{folder}: its dictionaries make no vocabulary: {error}") from error


def _only(folder: pathlib.Path, kind: str) -> pathlib.Path | None:
    found = sorted(folder.glob(f"{kind}*.pkl"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder}: {names}; keep those of one version in a folder of their own")
    return found[0] if found else None


def _of(version: str, folder: pathlib.Path, kind: str) -> pathlib.Path | None:
    path = _only(folder, kind)
    if path is not None and path.name != kind + version:
        raise ValueError(
            f"{folder}: {TOKENS}{version} beside {path.name}; take both from one version of the "
            "model"
        )
    return path
