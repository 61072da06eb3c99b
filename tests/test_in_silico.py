"""Genes deleted and over-expressed: shifts are those of the changed cells, embedded by hand."""

import numpy as np
import pytest

from scaling.corpus.encodings import Cells
from scaling.evaluate import embed, in_silico
from scaling.pretrain import step
from scaling.pretrain.model import ModelSettings

MODEL = ModelSettings(2, 16, 2, 16, 12, "relu", 0.0, 1e-12)
V = 30


def cells(*lists) -> Cells:
    tokens = np.zeros((len(lists), 12), np.int32)
    for row, cell in zip(tokens, lists, strict=True):
        row[: len(cell)] = cell
    return Cells(tokens)


def by_hand(params, before, after, special) -> float:
    arguments = params, MODEL, -2
    a, b = (embed.embed_cells(*arguments, [cells(c)], special)[0].astype(float)
            for c in (before, after))  # fmt: skip
    return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("special", [2, 4])
def test_shifts_are_those_of_changed_cells(special):
    params = step.initial_params(0, MODEL, V)
    around = ([2], [3]) if special == 4 else ([], [])

    def cell(*genes):
        return [*around[0], *genes, *around[1]]

    full = list(range(10, 22))[: 12 - 2 * (special == 4)]
    tokens = cells(cell(7, 5, 9), cell(*full), cell(8))
    deleted = in_silico.shifts(params, MODEL, -2, tokens, special, [5, 10, 8], "delete")
    assert np.isnan(deleted).tolist() == [[False, True, True], [True, False, True], [True] * 3]
    assert deleted[0, 0] == pytest.approx(
        by_hand(params, cell(7, 5, 9), cell(7, 9), special), rel=1e-3)  # fmt: skip
    assert deleted[1, 1] == pytest.approx(
        by_hand(params, cell(*full), cell(*full[1:]), special), rel=1e-3)  # fmt: skip
    put = in_silico.shifts(params, MODEL, -2, tokens, special, [5, 7, 8], "overexpress")
    assert put[0, 0] == pytest.approx(
        by_hand(params, cell(7, 5, 9), cell(5, 7, 9), special), rel=1e-3)  # fmt: skip
    assert put[1, 0] == pytest.approx(
        by_hand(params, cell(*full), cell(5, *full[:-1]), special), rel=1e-3)  # fmt: skip
    assert put[2, 0] == pytest.approx(
        by_hand(params, cell(8), cell(5, 8), special), rel=1e-3)  # fmt: skip
    # A gene that is the first already stays where it is.
    np.testing.assert_allclose([put[0, 1], put[2, 2]], 0, atol=1e-6)
    assert (put[0, [0]] > 1e-5).all()


def test_how_many_are_embedded_at_a_time_changes_nothing(monkeypatch):
    params, tokens = step.initial_params(0, MODEL, V), cells([7, 5, 9], [4, 6], [9, 5])
    whole = in_silico.shifts(params, MODEL, -2, tokens, 2, [5, 6, 7, 9])
    monkeypatch.setattr(in_silico, "AT_A_TIME", 3)
    np.testing.assert_array_equal(in_silico.shifts(params, MODEL, -2, tokens, 2, [5, 6, 7, 9]),
                                  whole)  # fmt: skip


def test_what_is_no_gene_or_perturbation_is_refused():
    params, tokens = step.initial_params(0, MODEL, V), cells([7, 5, 9])
    with pytest.raises(ValueError, match=r"tokens \[1, 30\] are of no gene"):
        in_silico.shifts(params, MODEL, -2, tokens, 2, [5, 1, 30])
    with pytest.raises(ValueError, match="'silence' is no perturbation"):
        in_silico.shifts(params, MODEL, -2, tokens, 2, [5], "silence")
