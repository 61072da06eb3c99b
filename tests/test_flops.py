"""The formula beside the products of the traced step and beside what the compiler counts."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from configs import default
from kernels.cab import slotwise
from scaling.pretrain import flops, masking, optimizer, step
from scaling.settings import Settings

PRESET = Settings.from_config(default.get_config()).run
B = 2
DRY = {"dropout": 0.0, "attention_dropout": 0.0}  # drawing counts, and is no product
SMALL = {"width": 256, "heads": 2, "feed_forward": 1024, "length": 128, **DRY}
OTHER = {"width": 128, "heads": 1, "feed_forward": 256, "length": 64, "layers": 3, **DRY}


def traced(objective: str, genes: int, **model):
    """(settings, arguments of a step, its formula) for a batch of B cells."""
    run = dataclasses.replace(
        PRESET,
        model=dataclasses.replace(PRESET.model, **model),
        objective=dataclasses.replace(PRESET.objective, name=objective),
        masking=dataclasses.replace(
            PRESET.masking, strategy="mam" if model.get("latents") else "uniform"
        ),
    )
    params = jax.eval_shape(lambda: step.initial_params(0, run.model, genes))
    moments = jax.eval_shape(optimizer.optimizer(run.train, 100).init, params)
    tokens, zeros = np.ones((B, run.model.length), np.int32), np.zeros(B, np.uint32)
    cells = masking.mask_cells(tokens, 0, zeros, zeros, genes, run.masking)
    if run.model.encoding != "ranks":
        cells = cells._replace(values_BxL=np.ones(tokens.shape, np.float32))
    sizes = run.model.length, cells.slots_BxM.shape[1], genes
    state = step.State(params, moments, np.int32(0))
    return run.program(), (state, cells), flops.of_cell(run.model, *sizes)


def products(jaxpr, most=None) -> int:
    """Operations of all matrix products of a program, those of a loop as often as it turns; of one
    that may end early, as often as it turns at most.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), (_, batched) = equation.params["dimension_numbers"]
            if equation.invars[1].aval.ndim == len(batched) + 1:
                continue  # sums, written as products with ones
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in summed)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        turns = most if equation.primitive.name == "while" else turns
        total += sum(turns * products(inner, most) for inner in jaxprs_in_params(equation.params))
    return total


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("objective", ["mlm", "cab", "cab_no_similarity"])
@pytest.mark.parametrize(("genes", "model"), [(25_426, {}), (512, SMALL), (300, OTHER)])
def test_the_formula_counts_every_product_of_the_step(objective, genes, model, remat):
    program, (state, cells), formula = traced(objective, genes, **model, remat=remat)
    found = jax.make_jaxpr(lambda *of: step.train_step(*of, 0, program, 100))(state, cells)
    slots = cells.slots_BxM.shape[1]
    parts = -(-slots // slotwise.at_once(B, slots))  # that CAB walks over, if all slots are filled
    # Blocks of the vocabulary are filled up.
    room = 0.011 if genes == 25_426 and objective == "mlm" else 0
    assert 0 <= products(found.jaxpr, parts) / B / formula.hardware - 1 <= room
    if objective == "mlm":
        found = jax.make_jaxpr(lambda *of: step.held_out_sums(*of, program))(state.params, cells)
        assert 0 <= products(found.jaxpr) / B / formula.forward - 1 <= 0.1 * room
    assert formula.model == 3 * formula.forward < formula.hardware


@pytest.mark.parametrize(
    "more", [{"latents": 24}, {"encoding": "projection"}, {"encoding": "bins"}]
)
def test_latents_and_values_are_counted(more):
    program, (state, cells), formula = traced("mlm", 512, **SMALL, **more)
    found = jax.make_jaxpr(lambda *of: step.held_out_sums(*of, program))(state.params, cells)
    shared = 2 * more.get("latents", 0) * SMALL["width"] ** 2  # queries, once for the batch
    assert products(found.jaxpr) == B * formula.forward - (B - 1) * shared
    plain = traced("mlm", 512, **SMALL)[2]
    assert (formula.forward > plain.forward) == (more != {"encoding": "bins"})


@pytest.mark.slow
@pytest.mark.parametrize(("genes", "model"), [(512, SMALL), (300, {**OTHER, "length": 112})])
def test_the_compiler_counts_what_the_formula_does(genes, model):
    """Of sizes at which every loop turns once, as the compiler counts it, and of enough positions
    that what AdamW and the norms take for each weight is little.
    """
    program, (state, cells), formula = traced("mlm", genes, **model)
    forward = step.held_out_sums.lower(state.params, cells, program).compile()
    found = forward.cost_analysis()["flops"] / B
    assert 1 < found / formula.forward < 1.03  # beside products, norms and softmax
    whole = step.train_step.lower(state, cells, 0, program, 100).compile()
    assert whole.cost_analysis()["flops"] / B == pytest.approx(formula.hardware, rel=0.02)


def test_the_preset_in_numbers():
    """Geneformer V1 at 2,048 genes, of which 384 slots: written out once, by hand."""
    *_, formula = traced("mlm", 25_426)
    full = 8 * 2048 * 256**2 + 4 * 2048**2 * 256 + 4 * 2048 * 256 * 512
    last = 4 * (2048 + 384) * 256**2 + 4 * 384 * 2048 * 256 + 4 * 384 * 256 * 512
    assert formula.forward == 5 * full + last + 2 * 384 * 256 * (256 + 25_426)
