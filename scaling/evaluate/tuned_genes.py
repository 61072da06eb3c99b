"""A pretrained encoder, cells and classes of genes -> each gene's class unseen, and AUROCs."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedKFold

from scaling.corpus.shards import Corpus
from scaling.evaluate import classifier, tuned_cells
from scaling.evaluate.classifier import Labelled
from scaling.evaluate.intervals import Bootstrap, Score
from scaling.evaluate.seen import UNKNOWN, Seen
from scaling.evaluate.tuning import FinetuneSettings
from scaling.pretrain.model import ModelSettings


@dataclasses.dataclass(frozen=True, eq=False)
class GenePredictions:
    """Classes of genes, each by a classifier that was not trained on it.

    Attributes:
      genes: ids, str [G].
      true: number of the class, int64 [G].
      fold: that left the gene out, from 0, int64 [G].
      logits: per gene those of its occurrences in the test cells, float32 [occurrences, classes].
      classes: names.
      split: how cells and genes were divided.
      note: what was left out.
    """

    genes: np.ndarray
    true: np.ndarray
    fold: np.ndarray
    logits: list[np.ndarray]
    classes: tuple[str, ...]
    split: str
    note: str

    @property
    def mean_logits(self) -> np.ndarray:
        """Of each gene over its occurrences, float64 [G, classes]."""
        return np.stack([of_gene.mean(0, dtype=np.float64) for of_gene in self.logits])


def finetune_genes(
    encoder: dict, model: ModelSettings, corpus: Corpus, settings: FinetuneSettings,
    devices: list | None = None, seen: Seen = UNKNOWN, folder: pathlib.Path | None = None,
) -> GenePredictions:
    """Classifies genes by cross-validation over genes.

    As published (Theodoris et al. 2023), every occurrence of a training gene in a training cell is
    an example, and cells without one are left out. Other than published, where the same cells
    serve for both, occurrences are classified in test cells. Genes of the test fold stand in the
    training cells without a label.

    Args:
      encoder, model, corpus, settings, devices, seen: see `finetune_cells`; cells need no label,
        and may have been seen with one.
      folder: keeps the folds that are done and their classifiers, to go on from there; None keeps
        none.

    Raises:
      ValueError: a bad CSV of classes, too few genes, cells, donors or steps.
    """
    note: list[str] = []
    tokens, true, classes = gene_classes(corpus, settings.gene_classes, note)
    of_genes = dataclasses.replace(seen, annotations=())
    some = tuned_cells.some(corpus.obs, settings)
    train, test, split = tuned_cells.divide(some, settings, note, of_genes)
    train, test = train.index.to_numpy(), test.index.to_numpy()
    size, length = len(corpus.vocabulary), model.length - len(corpus.vocabulary.around)
    times = np.zeros(size, np.int64)
    for read in corpus.cells(test):
        times[read[:length]] += 1
    present = times[tokens] > 0
    note.append(f"{(~present).sum()} genes that no test cell shows left out")
    tokens, true = tokens[present], true[present]
    of_classes = np.bincount(true, minlength=len(classes))
    if (of_classes < settings.folds).any():
        counts = ", ".join(f"{n} {name}" for name, n in zip(classes, of_classes, strict=True))
        raise ValueError(
            f"{settings.gene_classes}: {counts} are in the test cells, and each class needs "
            f"finetune.folds = {settings.folds}; lower it, or give more cells"
        )
    fold = np.empty(len(tokens), np.int64)
    folds = StratifiedKFold(settings.folds, shuffle=True, random_state=settings.seed)
    for number, (_, left_out) in enumerate(folds.split(tokens, true)):
        fold[left_out] = number
    module = tuned_cells.head(model, corpus, settings, len(classes))
    logits: list[np.ndarray] = [np.empty(0)] * len(tokens)
    for number in range(settings.folds):
        path = folder / f"fold-{number + 1}.npz" if folder else None
        if path is None or not path.exists():
            taught = np.full(size, -1, np.int32)
            taught[tokens[fold != number]] = true[fold != number]
            shown = [(taught[read[:length]] >= 0).any() for read in corpus.cells(train)]
            cells = Labelled(corpus, train[shown], taught)
            params, _ = classifier.train(encoder, module, settings, cells, devices)
            mine = tokens[fold == number]
            asked = corpus, test, settings.buckets, devices
            found, of = _occurrences(classifier.logits(params, module, *asked), mine, size)
            if path:
                kept = corpus.vocabulary, path.with_suffix("")
                classifier.export(params, module, classes, *kept)
                _save(path, logits=found, gene=of)
        else:
            with np.load(path) as held:
                found, of = held["logits"], held["gene"]
        for place, gene in enumerate(np.flatnonzero(fold == number)):
            logits[gene] = found[of == place]
    genes = np.array(corpus.vocabulary.genes)[tokens - len(corpus.vocabulary.special)]
    split = f"{settings.folds} folds of genes; cells {split}"
    return GenePredictions(genes, true, fold, logits, classes, split, "; ".join(note))


def gene_classes(
    corpus: Corpus, path: str, note: list[str]
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Tokens int64 [G], numbers of their classes int64 [G], and the classes' names.

    Args:
      corpus: whose vocabulary gives the tokens.
      path: CSV of one column a class, named by it, that lists gene ids; blanks end short ones.
      note: is told of genes without a token.

    Raises:
      ValueError: no such CSV, fewer than two classes, or a gene of two.
    """
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: no table of genes ({error}); finetune.gene_classes must be a CSV with one "
            "column of gene ids for each class"
        ) from error
    vocabulary, classes = corpus.vocabulary, tuple(table.columns)
    token = vocabulary.token
    found: dict[str, int] = {}
    for number, name in enumerate(classes):
        for gene in table[name].dropna().str.strip():
            gene = vocabulary.renamed.get(gene, gene)
            if found.setdefault(gene, number) != number:
                raise ValueError(
                    f"{path}: {gene} is of {classes[found[gene]]!r} and of {name!r}; leave it in "
                    "one column of gene ids, and no other columns"
                )
    known = sorted(gene for gene in found if gene in token)
    if len(classes) < 2 or not known:
        raise ValueError(
            f"{path}: {len(known)} of its {len(found)} genes, in columns {list(classes)}, have a "
            f"token in {corpus.folder}; give one column of gene ids (as "
            f"{vocabulary.genes[0]}) for each of two classes or more; where one has symbols and "
            "the other Ensembl ids, pretrain with data.gene_names"
        )
    note.append(f"{len(found) - len(known)} of {len(found)} genes have no token")
    numbers = np.array([found[gene] for gene in known], np.int64)
    return np.array([token[gene] for gene in known], np.int64), numbers, classes


def scores(found: GenePredictions, seed: int = 0) -> list[Score]:
    """AUROC of the second class in each fold, and its mean over folds; intervals over genes.

    `auroc_genes` ranks genes by the mean logits of their occurrences, folds weigh alike;
    `auroc_occurrences` ranks occurrences and weighs folds by their number, as published.
    """
    names = "auroc_genes", "auroc_occurrences"
    if len(found.classes) != 2:
        note = f"{len(found.classes)} classes, and AUROC is of two; {found.note}"
        return [Score(name, None, split=found.split, note=note) for name in names]
    genes = len(found.genes)
    draw = Bootstrap(genes, seed=seed, units="genes")
    margins = [of_gene[:, 1] - of_gene[:, 0] for of_gene in found.logits]
    means = (found.mean_logits[:, 1] - found.mean_logits[:, 0])[:, None]
    rows = []
    for name, of_genes in zip(names, (means, margins), strict=True):
        folds = [found.fold == number for number in range(found.fold.max() + 1)]
        parts = [auroc(of_genes, found.true, mine) for mine in folds]
        times_GxF = np.array([len(of_gene) for of_gene in margins])[:, None] * np.stack(folds, 1)
        weight_GxF = times_GxF if name == "auroc_occurrences" else None
        for number, (mine, part) in enumerate(zip(folds, parts, strict=True)):
            rows.append((name, part, {"of": f"fold {number + 1}", "n": int(mine.sum())}))
        rows.append((name, _mean(parts, weight_GxF), {"n": genes, "note": found.note}))
    made = [draw.score(*row, **of, split=found.split) for *row, of in rows]
    unit = {"interval": f"{genes} genes"}
    return [dataclasses.replace(s, **unit) if s.low is not None else s for s in made]


def auroc(margins, true_G: np.ndarray, mine_G: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Area under the ROC curve of the values of some genes, by how often each gene counts.

    It is the share of pairs of a value of the second class and one of the first in which the
    first is smaller; ties count half (Mann & Whitney 1947).

    Args:
      margins: values [occurrences] of each of G genes.
      true_G: int, 1 is the second class.
      mine_G: bool, genes to count.

    Returns:
      Function of weights float64 [S, G] to S areas; NaN where a class is absent.
    """
    high, low = (np.flatnonzero(mine_G & (true_G == number)) for number in (1, 0))
    won = np.zeros((len(high), len(low)))
    for column, gene in enumerate(low):
        values = np.sort(margins[gene])
        for row, other in enumerate(high):
            below = np.searchsorted(values, margins[other], "left").sum()
            won[row, column] = (below + np.searchsorted(values, margins[other], "right").sum()) / 2
    times = np.array([len(of_gene) for of_gene in margins], np.float64)

    def area(w_SxG):
        above = ((w_SxG[:, high] @ won) * w_SxG[:, low]).sum(1)
        pairs = (w_SxG[:, high] @ times[high]) * (w_SxG[:, low] @ times[low])
        return np.divide(above, pairs, out=np.full(len(above), np.nan), where=pairs > 0)

    return area


def _mean(parts, weight_GxF):
    def mean(w_SxG):
        each_SxF = np.stack([part(w_SxG) for part in parts], 1)
        return each_SxF.mean(1) if weight_GxF is None else np.average(
            each_SxF, axis=1, weights=w_SxG @ weight_GxF
        )

    return mean


def _occurrences(batches, mine: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of every occurrence of some tokens, and the place of its token among them."""
    place = np.full(size, -1)
    place[mine] = np.arange(len(mine))
    found, of = [], []
    for _, tokens_BxL, logits_BxLxC in batches:
        hit_BxL = place[tokens_BxL] >= 0
        found.append(logits_BxLxC[hit_BxL])
        of.append(place[tokens_BxL[hit_BxL]])
    return np.concatenate(found), np.concatenate(of)


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    partial.rename(path)
