"""A config's model and random full-length cells -> whole training steps and heads to be timed.

Also what is timed of corpora, of which feeding needs the rooms of this floor.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernels.cab import bench, cab_loss, masked_lm_loss
from scaling.corpus import alone
from scaling.corpus import bench as measures
from scaling.corpus.vocabulary import Vocabulary
from scaling.pretrain import feeding, masking, optimizer, step, whole_steps
from scaling.pretrain.model import ModelSettings, RankEncoder

STEPS = 1_000  # of the learning rate's schedule
BUCKETS = 32  # lengths to pad to, at most: the README's advice for cells of unlike lengths


def programs(name: str, settings: step.RunSettings, vocabulary: int, cells: int) -> bench.Groups:
    """All programs of a model whose times and memory are measured, by title."""
    return {
        f"training step of {name}, {cells} cells": steps(settings, vocabulary, cells),
        f"gradients of {name}, 1 cell": one_cell(settings, vocabulary),
        **bench.heads(cells),
    }


def memory_alone(
    name: str, settings: dict, vocabulary: int, cells: int, title: str, case: str
) -> dict[str, int]:
    """`bench.memory` of one of the `programs`, for a process that imports nothing else.

    Args:
      settings: as JSON holds those of a run.
    """
    run = step.RunSettings.from_config(settings)
    return bench.memory(programs(name, run, vocabulary, cells)[title][case])


def steps(settings: step.RunSettings, vocabulary: int, cells: int) -> dict[str, bench.Case]:
    """One whole training step with each objective: model, loss, AdamW, metrics.

    Args:
      settings: model, masking and training; the objective's name is replaced.
      vocabulary: V.
      cells: of a batch, all of full length.
    """

    def of(name: str) -> bench.Case:
        objective = dataclasses.replace(settings.objective, name=name)
        program = dataclasses.replace(settings, objective=objective).program()

        def case() -> bench.Program:
            params = step.initial_params(0, settings.model, vocabulary)
            moments = optimizer.optimizer(settings.train, STEPS).init(params)
            state = step.State(params, moments, jnp.int32(0))
            tokens = whole_steps.full_cells(vocabulary, settings.model.length, cells)
            batch = _masked(tokens, vocabulary, settings)
            args = state, batch, np.uint32(0)
            compiled = step.train_step.lower(*args, program=program, steps=STEPS).compile()

            def run():
                nonlocal state
                state, logged = compiled(state, *args[1:])
                return logged

            return bench.Program(compiled, run)

        return case

    return {"mlm": of("mlm"), "cab": of("cab")}


def one_cell(settings: step.RunSettings, vocabulary: int) -> dict[str, bench.Case]:
    """Loss and gradients of one cell through the whole model: masked slots alone, and literally.

    "literal cab" is the published form over all positions; "full-length mlm" is BERT's head, which
    computes the logits of all positions. Both build arrays of L x V.
    """

    def case_of(loss) -> bench.Case:
        def case() -> bench.Program:
            params = _weights(settings.model, vocabulary)
            tokens = whole_steps.full_cells(vocabulary, settings.model.length, 1)
            cells = _masked(tokens, vocabulary, settings)
            model = RankEncoder(settings.model, vocabulary)

            def of_params(params):
                def states(slots):
                    rngs, read = {"dropout": jax.random.key(0)}, (cells.inputs_BxL, slots)
                    return model.apply({"params": params}, *read, np.arange(1), rngs=rngs)

                return loss(states, params["embedding"], params["bias"], cells, tokens)

            compiled = jax.jit(jax.value_and_grad(of_params)).lower(params).compile()
            return bench.Program(compiled, lambda: compiled(params))

        return case

    return {
        "cab": case_of(_cab),
        "literal cab": case_of(_literal_cab),
        "mlm": case_of(_mlm),
        "full-length mlm": case_of(_full_length_mlm),
    }


def _weights(model: ModelSettings, vocabulary: int) -> dict:
    """Random weights, drawn without compiling: that would hold more memory than what is timed."""
    shapes = jax.eval_shape(lambda: step.initial_params(0, model, vocabulary))
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda of: jnp.asarray(draw.normal(0, 0.02, of.shape), of.dtype), shapes)


def corpora(
    cells: measures.Cells, settings: step.RunSettings, rounds: int, sizes: list[int]
) -> dict[str, Callable[[], dict]]:
    """All that is measured of corpora, by title; each is measured when it is called.

    Args:
      cells: the files.
      settings: their batch and masking are used.
      rounds: how often each way is timed.
      sizes: cells of the builds whose memory is watched.
    """
    batch, masks = settings.train.batch, dataclasses.asdict(settings.masking)
    return {
        "corpus: ranking": lambda: measures.ranking(cells, rounds),
        "corpus: building": lambda: measures.building(cells, rounds),
        "corpus: feeding": lambda: feed(cells, batch, masks, rounds),
        "corpus: memory": lambda: measures.memory(cells, sizes),
    }


def feed(cells: measures.Cells, batch: int, masks: dict, rounds: int) -> dict:
    """Masked batches of the same cells from our corpus and from the plain data set.

    Args:
      cells: the files.
      batch: cells of a batch.
      masks: the fields of `MaskingSettings`.
      rounds: passes over all cells that are timed.
    """
    if left_out := measures.missing("datasets", "torch"):
        return left_out
    vocabulary = Vocabulary.load(cells.corpus / "vocabulary.json")
    batches = cells.count // batch
    ours = str(cells.corpus), measures.LENGTH, BUCKETS, batch, batches
    plainly = str(cells.dataset), batch, measures.PROCESSES, len(vocabulary)
    taken = {
        "ours": alone.run(feeding.seconds, *ours, masks, rounds),
        "plain": alone.run(feeding.plain_seconds, *plainly, masks, rounds),
    }
    more = {"batch": batch, "buckets": BUCKETS}
    return measures.row("feeding", "cells/s", batches * batch, taken, **more)


def _masked(tokens, vocabulary: int, settings: step.RunSettings) -> masking.MaskedCells:
    epoch, cell = np.zeros(len(tokens), np.int32), np.arange(len(tokens))
    return masking.mask_cells(tokens, 0, epoch, cell, vocabulary, settings.masking)


def _cab(states, embedding, bias, cells, tokens):
    known = masking.known_genes(cells, len(embedding))
    out = cab_loss(states(cells.slots_BxM), embedding, bias, cells.labels_BxM, known)
    return out.cross_entropy + out.similarity


def _mlm(states, embedding, bias, cells, tokens):
    return masked_lm_loss(states(cells.slots_BxM), embedding, bias, cells.labels_BxM).cross_entropy


def _literal_cab(states, embedding, bias, cells, tokens):
    every = jnp.arange(tokens.shape[1])[None]
    return sum(bench.literal_cab(states(every), embedding, bias, tokens, _selected(cells)))


def _full_length_mlm(states, embedding, bias, cells, tokens):
    every = jnp.arange(tokens.shape[1])[None]
    logits_BxLxV = jnp.einsum("bld,vd->blv", states(every), embedding) + bias
    nll_BxL = optax.softmax_cross_entropy_with_integer_labels(logits_BxLxV, tokens)
    return jnp.where(_selected(cells), nll_BxL, 0.0).sum()


def _selected(cells: masking.MaskedCells):
    """bool [B, L], the positions of the filled slots."""
    length = cells.inputs_BxL.shape[1]
    place = jnp.where(cells.labels_BxM >= 0, cells.slots_BxM, length)
    empty = jnp.zeros(cells.inputs_BxL.shape, bool)
    return jax.vmap(lambda of_cell, at: of_cell.at[at].set(True, mode="drop"))(empty, place)
