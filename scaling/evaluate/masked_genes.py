"""Checkpoint + held-out cells -> how well masked genes are predicted, beside the floors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from kernels.cab import cab_loss, masked_lm_loss
from scaling.corpus.shards import Corpus
from scaling.evaluate.intervals import Bootstrap, Score
from scaling.pretrain import masking
from scaling.pretrain.batches import cell_hashes
from scaling.pretrain.model import ModelSettings, RankEncoder
from scaling.pretrain.predictions import cell_metrics

BATCH = 64


def score_model(
    params: dict,
    model: ModelSettings,
    mask: masking.MaskingSettings,
    corpus: Corpus,
    rows: np.ndarray,
    *,
    seed: int = 0,
) -> list[dict]:
    """Scores read from P and from Q, at `<mask>` and at all selected positions.

    Each cell has one fixed draw of masks, the same for every checkpoint; `seed` is that of the
    resamples. Accuracy, repeats and
    uniqueness are means over cells with a counted position; the loss is a mean over positions (of
    Q over all selected ones alone: its rows depend on the masked rows before them).

    Returns:
      Rows of the fields of a Score and {positions, read_from}; loss in nats. Coverage and ratio of
      entropies have no interval: both grow with the number of cells, so that resamples, which
      repeat cells, fall short of them.
    """
    step = functools.partial(_predict, params, model=model)
    return _score(step, model.length, mask, corpus, rows, seed, model.encoding)


def score_floors(
    frequency_V: np.ndarray,
    length: int,
    mask: masking.MaskingSettings,
    corpus: Corpus,
    rows: np.ndarray,
    *,
    seed: int = 0,
) -> dict[str, list[dict]]:
    """What is reached without a model: {"copy_input": rows, "most_frequent": rows}.

    Args:
      frequency_V: how many training cells have each token among their first `length`.
      length: positions of a cell that count.
      mask: settings of the masks.
      corpus: of the cells.
      rows: the held-out cells.
      seed: of the resamples.
    """
    step = functools.partial(_floors, jnp.asarray(frequency_V))
    scored = _score(step, length, mask, corpus, rows, seed)
    return {
        name: [{**row, "read_from": None} for row in scored if row["read_from"] == name]
        for name in ("copy_input", "most_frequent")
    }


def token_frequency(corpus: Corpus, rows: np.ndarray, length: int) -> np.ndarray:
    """Number of cells with each gene among their first `length` tokens, int64 [V]."""
    tokens = corpus.tokens(rows, length)
    genes = tokens[tokens >= len(corpus.vocabulary.special)]
    return np.bincount(genes, minlength=len(corpus.vocabulary))


@functools.partial(jax.jit, static_argnames="model")
def _predict(params, cells: masking.MaskedCells, *, model):
    encoder = RankEncoder(model, len(params["bias"]))
    known_BxV = masking.known_genes(cells, encoder.vocabulary)
    read = cells.inputs_BxL, cells.slots_BxM, None, cells.values_BxL
    hidden_BxMxD = encoder.apply({"params": params}, *read)
    embedding_VxD, bias_V = params["embedding"], params["bias"]

    def plain(hidden_MxD, labels_M):
        of_cell = hidden_MxD[None], embedding_VxD, bias_V, labels_M[None]
        return masked_lm_loss(*of_cell, implementation="blocked").cross_entropy

    def blocked(hidden_MxD, labels_M, known_V):
        # Blocked: the compiler cuts it over devices, which it cannot do with a kernel.
        of_cell = hidden_MxD[None], embedding_VxD, bias_V, labels_M[None], known_V[None]
        out = cab_loss(*of_cell, similarity="none", implementation="blocked")
        return out.cross_entropy, out.top_p_BxM[0], out.top_q_BxM[0]

    labels_BxM = cells.labels_BxM
    hidden_only_BxM = jnp.where(cells.hidden_BxM, labels_BxM, -1)
    nats_of_q_B, top_p_BxM, top_q_BxM = jax.vmap(blocked)(hidden_BxMxD, labels_BxM, known_BxV)
    nats = {
        ("P", "selected"): jax.vmap(plain)(hidden_BxMxD, labels_BxM),
        ("P", "mask"): jax.vmap(plain)(hidden_BxMxD, hidden_only_BxM),
        ("Q", "selected"): nats_of_q_B,
    }
    return _judged(cells, known_BxV, {"P": top_p_BxM, "Q": top_q_BxM}, nats)


@jax.jit
def _floors(frequency_V, cells: masking.MaskedCells):
    known_BxV = masking.known_genes(cells, len(frequency_V))
    likely_B = jnp.argmax(jnp.where(known_BxV, -1, frequency_V), axis=1)
    tops = {
        "copy_input": jnp.take_along_axis(cells.inputs_BxL, cells.slots_BxM, axis=1),
        "most_frequent": jnp.broadcast_to(likely_B[:, None], cells.slots_BxM.shape),
    }
    return _judged(cells, known_BxV, tops, {})


def _judged(cells: masking.MaskedCells, known_BxV: jax.Array, tops: dict, nats: dict) -> dict:
    """For each reading and kind of position: metrics of cells, and what was counted."""
    counted = {"mask": cells.hidden_BxM, "selected": cells.labels_BxM >= 0}
    return {
        (reading, kind): {
            "of_cells": cell_metrics(top_BxM, cells.labels_BxM, counted_BxM, known_BxV)
            | ({"nats": nats[reading, kind]} if (reading, kind) in nats else {}),
            "top": jnp.where(counted_BxM, top_BxM, -1),
            "true": jnp.where(counted_BxM, cells.labels_BxM, -1),
        }
        for reading, top_BxM in tops.items()
        for kind, counted_BxM in counted.items()
    }


def _score(
    step, length: int, mask, corpus: Corpus, rows: np.ndarray, seed: int, encoding: str = "ranks"
) -> list[dict]:
    """Runs a step over all cells and adds up what it found; nothing is averaged before."""
    judged, genes = [], corpus.vocabulary
    draw = masking.HELD_OUT_SEED, np.zeros(BATCH, np.int32)
    obs = corpus.obs.iloc[rows]
    cell = cell_hashes(obs["cell_id"].to_numpy())
    for start in tqdm(range(0, len(rows), BATCH), "masked genes", leave=False, delay=5):
        some = rows[start : start + BATCH]
        short = BATCH - len(some)  # filled with empty cells, which have no position to count
        hashes = np.pad(cell[start : start + BATCH], (0, short))
        read = corpus.inputs(some, length, encoding)
        tokens, values = jax.tree.map(lambda of: np.pad(of, ((0, short), (0, 0))), read)  # noqa: B023
        shares = len(genes), mask, len(genes.special)
        masked = masking.mask_cells(tokens, *draw, hashes, *shares)
        judged.append(jax.device_get(step(masked._replace(values_BxL=values))))
    bootstrap = Bootstrap(len(rows), obs["donor"].to_numpy(str), seed=seed)
    return [
        score.row(positions=kind, read_from=reading)
        for reading, kind in judged[0]
        for score in _summary([batch[reading, kind] for batch in judged], len(genes), bootstrap)
    ]


def _summary(parts: list[dict], vocabulary: int, bootstrap: Bootstrap) -> list[Score]:
    of_cells = {
        name: np.concatenate([part["of_cells"][name] for part in parts])[: bootstrap.n]
        for name in parts[0]["of_cells"]
    }
    slots_N = of_cells.pop("slots")
    nats_N = of_cells.pop("nats", None)
    of_cells["repeat"] = of_cells["repeat_masked"] + of_cells["repeat_unmasked"]
    found = [
        bootstrap.mean(name, np.where(slots_N > 0, values_N, np.nan))
        for name, values_N in of_cells.items()
    ]
    top, true = (
        np.bincount(np.concatenate([p[key][p[key] >= 0] for p in parts]), minlength=vocabulary)
        for key in ("top", "true")
    )
    positions, entropy = int(true.sum()), _entropy(true)
    coverage = float((top > 0).sum() / (true > 0).sum()) if positions else None
    found.append(Score("coverage", coverage, n=positions))
    ratio = _entropy(top) / entropy if entropy else None
    found.append(Score("entropy_ratio", ratio, n=positions))
    if nats_N is not None:
        found.append(bootstrap.ratio("loss", nats_N, slots_N, n=positions))
    return found


def _entropy(counts: np.ndarray) -> float:
    """Shannon entropy of a distribution given by counts, nats."""
    share = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(share * np.log(share)).sum())
