"""A cell's tokens and its key -> the positions to be masked, and what stands there instead.

All that is compiled stands in this file: numba keeps a compiled function for as long as the file of
the outermost one stays as it is, whatever happens to the files of those that it calls.
"""

from typing import NamedTuple

import numba
import numpy as np

from scaling.corpus import gene_tables
from scaling.corpus.tokens import MASK, PAD
from scaling.corpus.vocabulary import Vocabulary, read_gene_names

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's increment
ORDER = np.uint64(0xD1B54A32D192ED03)  # sets the words of programs apart from those of positions


class Programs(NamedTuple):
    """Gene programs, one after another.

    Attributes:
      starts: int64 [programs + 1], where each begins.
      tokens: int64, of their genes.
    """

    starts: np.ndarray
    tokens: np.ndarray


NONE = Programs(np.zeros(1, np.int64), np.zeros(0, np.int64))


def read_programs(path: str, gene_names: str, vocabulary: Vocabulary) -> Programs:
    """The programs of a GMT file that a vocabulary has genes of.

    Args:
      path: of the file.
      gene_names: table of symbols, see `vocabulary.read_gene_names`; "" for none.
      vocabulary: gives the tokens; genes that it lacks are left out.

    Raises:
      ValueError: no GMT file, or none of its genes is in the vocabulary.
    """
    token = vocabulary.token
    programs = gene_tables.read_gmt(path, read_gene_names(gene_names, vocabulary.genes))
    found = [[token[gene] for gene in genes if gene in token] for genes in programs.values()]
    if not any(found):
        example = next((genes[0] for genes in programs.values()), "none")
        raise ValueError(
            f"{path}: no gene of its {len(programs)} programs (such as {example!r}) is in the "
            f"vocabulary (such as {vocabulary.genes[0]!r}); give a table "
            "of symbols and ids in masking.gene_names"
        )
    starts = np.cumsum([0, *map(len, found)])
    return Programs(starts.astype(np.int64), np.array(sum(found, []), np.int64))


@numba.njit(cache=True, nogil=True)
def in_band(tokens, key, lowest, bound, band, words, positions):
    """Positions of genes whose rank lies in the band, each drawn by itself; returns how many.

    Args:
      tokens: int [L].
      key: uint64, from which the words are drawn.
      lowest: least token that may be masked.
      bound: uint64, share of 2^32 of the words that select.
      band: first and last share of the cell's genes, by rank, the last one not included.
      words: uint64 [L], gets the words of the positions.
      positions: int64 [L], gets them.
    """
    count, rank, genes = 0, 0, 0
    for p in range(len(tokens)):
        genes += tokens[p] >= lowest
    first, last = band[0] * genes, band[1] * genes
    for p in range(len(tokens)):
        if tokens[p] < lowest:
            continue
        words[count], positions[count] = mixed(key + np.uint64(p) * GOLDEN), p
        inside = first <= rank < last
        count += inside & ((words[count] >> np.uint64(32)) < bound)
        rank += 1
    return count


@numba.njit(cache=True, nogil=True)
def whole_programs(
    tokens, key, lowest, share, most, programs, place, taken, words, positions
):  # fmt: skip
    """Positions of whole programs, drawn until the share is reached; returns how many.

    A program that would take more than half of the cell's genes or more than `most` positions with
    those before it is passed over.

    Args:
      tokens, key, lowest, words, positions: see `in_band`.
      share: of the cell's genes.
      most: positions at most.
      programs: Programs.
      place: int64 [V], all -1, and so again afterwards.
      taken: bool [L], all False, and so again afterwards.
    """
    genes = 0
    for p in range(len(tokens)):
        if tokens[p] >= lowest:
            place[tokens[p]] = p
            genes += 1
    drawn = np.empty(len(programs.starts) - 1, np.uint64)
    for k in range(len(drawn)):
        drawn[k] = mixed((key ^ ORDER) + np.uint64(k) * GOLDEN)
    chosen, most = 0, min(most, genes // 2)
    for k in np.argsort(drawn):
        if chosen >= share * genes:
            break
        of_program = programs.tokens[programs.starts[k] : programs.starts[k + 1]]
        more = 0
        for token in of_program:
            more += place[token] >= 0 and not taken[place[token]]
        if chosen + more <= most:
            chosen += more
            for token in of_program:
                if place[token] >= 0:
                    taken[place[token]] = True
    count = 0
    for p in range(len(tokens)):
        if tokens[p] >= lowest:
            place[tokens[p]] = -1
        if taken[p]:
            words[count], positions[count] = mixed(key + np.uint64(p) * GOLDEN), p
            taken[p] = False
            count += 1
    return count


@numba.njit(cache=True, nogil=True)
def mask(
    tokens, seed, epoch, cell, first, vocabulary, bounds, band, rate, whole, programs,
    inputs, slots, labels, hidden, surplus,
):  # fmt: skip
    """Selects and treats positions of cells; what `masking.mask_cells` returns is written in place.

    Positions are selected by the upper half of one word each, treated by those of another.
    """
    count, length = tokens.shape
    half, lower = np.uint64(32), np.uint64(0xFFFFFFFF)
    lowest, genes = max(first, PAD + 1), np.uint64(vocabulary - first)
    word, position = np.empty(length, np.uint64), np.empty(length, np.int64)
    place, taken = np.full(vocabulary if whole else 0, -1), np.zeros(length, np.bool_)
    most = slots.shape[1]
    for b in range(count):
        key = key_of(seed, epoch[b], cell[b])
        if whole:
            chosen = whole_programs(
                tokens[b], key, lowest, rate, most, programs, place, taken, word, position
            )
        else:
            chosen = in_band(tokens[b], key, lowest, bounds[0], band, word, position)
        last = np.uint64(0xFFFFFFFFFFFFFFFF)
        if chosen > most:
            # The smallest words are a random choice; no two of a cell are the same.
            last = np.sort(word[:chosen])[most - 1]
            surplus[b] = chosen - most
        slot = 0
        for k in range(chosen):
            if word[k] > last:
                continue
            p, treatment = position[k], mixed(word[k])
            slots[b, slot], labels[b, slot] = p, tokens[b, p]
            if (treatment >> half) < bounds[1]:
                inputs[b, p], hidden[b, slot] = MASK, True
            elif (treatment >> half) < bounds[2]:
                inputs[b, p] = first + np.int64(((treatment & lower) * genes) >> half)
            slot += 1


@numba.njit(cache=True, nogil=True)
def key_of(seed, epoch, cell):
    """The word from which all draws of a cell in an epoch come, uint64."""
    return mixed(mixed(mixed(seed) ^ epoch) ^ cell)


@numba.njit(cache=True, nogil=True)
def mixed(state):
    """The output of SplitMix64 after a state (Steele et al. 2014), uint64."""
    word = state + GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
