"""A study's jobs: every combination of its axes once, under names and settings that say which."""

import dataclasses
import itertools
import math

import pytest

from configs import smoke
from scaling.pretrain import ladder
from scaling.settings import Settings
from scaling.sweeps import jobs
from scaling.sweeps.grid import GridSettings


def settings_of(base_width=0, warmup=0.1, layer=-2, **study):
    config = smoke.get_config()
    config.model.base_width, config.train.warmup = base_width, warmup
    config.evaluate.layer = layer
    for name, value in study.items():
        config.study[name] = value
    return Settings.from_config(config)


def trained(settings, pool=None):
    return [job for job in jobs.plan(settings, pool) if job.steps]


def test_maskings_are_an_axis_and_mam_brings_its_latents():
    settings = settings_of(sizes=(50,), seeds=(0,), objectives=("cab",),
                           maskings=("uniform", "band", "mam"))  # fmt: skip
    found = {job.name: jobs.run_settings(settings, job) for job in trained(settings)}
    assert {name.split("-")[1] for name in found} == {"uniform", "band", "mam"}
    for job in trained(settings):
        run = jobs.run_settings(settings, job)
        assert run.masking.strategy == job.masking == job.axes()["masking"]
        assert run.model.latents == (jobs.LATENTS if job.masking == "mam" else 0)
    assert len({run.hash({}) for run in found.values()}) == 3
    [untrained] = [job for job in jobs.plan(settings) if job.model == jobs.UNTRAINED]
    assert jobs.run_settings(settings, untrained).model.latents == 0


def test_every_combination_is_one_job_that_trains_what_its_columns_say():
    axes = dict(
        sizes=(50, 200), schemes=("random", "sketch"), seeds=(0, 3), steps=(25, 40), epochs=(2.0,),
        masking_rates=(0.15, 0.4), encoders=("0.1m", ("tiny", {"width": 8})),
    )  # fmt: skip
    axes |= dict(variants=("recalibrated", "plain"), weights=(0.5, 3.0))
    settings = settings_of(objectives=("mlm", "cab", "cab_no_similarity"), **axes)
    found = trained(settings)
    objectives = [("mlm", None, 0.0), ("cab_no_similarity", "recalibrated", 0.0)]
    objectives += [("cab", v, w) for v in ("recalibrated", "plain") for w in (0.5, 3.0)]
    names = {"0.1m", "tiny"}
    durations = {"25 steps", "40 steps", "2 epochs"}
    wanted = itertools.product(
        objectives, (50, 200), ("random", "sketch"), (0, 3), (0.15, 0.4), names, durations
    )
    got = [
        ((j.model, j.variant, j.similarity_weight), j.cells, j.scheme, j.init_seed, j.masking_rate,
         j.encoder, j.duration)
        for j in found
    ]  # fmt: skip
    assert sorted(got, key=repr) == sorted(wanted, key=repr)
    assert len({job.name for job in jobs.plan(settings)}) == len(jobs.plan(settings))
    hashes = set()
    for job in found:
        run = jobs.run_settings(settings, job)
        hashes.add(run.hash({}))
        assert (run.objective.name, run.masking.rate) == (job.model, job.masking_rate)
        assert run.model.width == {"0.1m": 64, "tiny": 8}[job.encoder]
        assert run.objective.variant == (job.variant or "recalibrated")
        assert run.objective.weight == (job.similarity_weight or 0.15)
        train = run.train
        assert (train.cells, train.scheme) == (job.cells, job.scheme)
        assert train.subset_seed == train.init_seed == train.mask_seed == job.init_seed
        assert job.steps == train.total_steps(job.cells)
        if job.duration == "2 epochs":
            assert job.steps == math.ceil(2 * job.cells / train.batch) and train.steps == 0
        else:
            assert f"{train.steps} steps" == job.duration and train.epochs == 0
    assert len(hashes) == len(found)
    others = [job for job in jobs.plan(settings) if not job.steps]
    kinds = [(job.model, job.encoder, job.cells, job.scheme) for job in others]
    wanted = [("untrained", name, 0, None) for name in names]
    wanted += [("baselines", None, n, s) for n in (50, 200) for s in ("random", "sketch")]
    assert sorted(kinds, key=repr) == sorted(2 * wanted, key=repr)  # of two seeds


def test_an_axis_of_one_value_leaves_the_names_and_sets_the_run():
    plain = [job.name for job in jobs.plan(settings_of())]
    assert plain == ["untrained-s0", *(f"{model}-n{n}-s0" for n in (50, 200)
                                       for model in ("baselines", "mlm", "cab"))]  # fmt: skip
    one = settings_of(variants=("plain",), weights=(7.0,), steps=(30,), masking_rates=(0.3,),
                      encoders=("0.1m",))  # fmt: skip
    assert [job.name for job in jobs.plan(one)] == plain
    run = jobs.run_settings(one, trained(one)[-1])
    assert (run.objective.variant, run.objective.weight) == ("plain", 7.0)
    assert (run.train.steps, run.masking.rate, run.model.width) == (30, 0.3, 64)
    several = settings_of(weights=(1.0, 2.0), epochs=(1.0, 2.5), masking_rates=(0.15, 0.3))
    names = [job.name for job in trained(several)]
    assert "cab-w2-m0.3-2.5epochs-n200-s0" in names and "mlm-m0.15-1epochs-n50-s0" in names


def test_a_weight_may_be_of_one_variant_alone():
    pairs = (("recalibrated", 1.0), ("plain", 200.0))
    settings = settings_of(objectives=("cab",), variants=("recalibrated", "plain"), weights=pairs)
    found = {(job.variant, job.similarity_weight, job.name) for job in trained(settings)
             if job.cells == 50}  # fmt: skip
    assert found == {("recalibrated", 1.0, "cab-recalibrated-n50-s0"),
                     ("plain", 200.0, "cab-plain-n50-s0")}  # fmt: skip
    with pytest.raises(ValueError, match="without one for 'plain'"):
        jobs.plan(settings_of(variants=("recalibrated", "plain"), weights=pairs[:1]))
    with pytest.raises(ValueError, match=r"names \['plain'\], which study.variants does not"):
        jobs.plan(settings_of(weights=pairs))


def test_blocking_alone_is_not_trained_as_mlm():
    with pytest.raises(ValueError, match="under the variant 'plain' is mlm"):
        jobs.plan(settings_of(objectives=("cab_no_similarity",), variants=("plain",)))


def test_seeds_may_be_apart():
    settings = settings_of(seeds=(0, (0, 1, 0), (2, 0, 5)), sizes=(50,), objectives=("mlm",))
    found = {job.name: (job.subset_seed, job.init_seed, job.mask_seed) for job in trained(settings)}
    assert found == {"mlm-n50-s0": (0, 0, 0), "mlm-n50-s0.1.0": (0, 1, 0),
                     "mlm-n50-s2.0.5": (2, 0, 5)}  # fmt: skip
    for job in trained(settings):
        train = jobs.run_settings(settings, job).train
        assert (train.subset_seed, train.init_seed, train.mask_seed) == found[job.name]
    others = [job.name for job in jobs.plan(settings) if not job.steps]
    assert others == ["untrained-s0", "untrained-s1", "baselines-n50-s0", "baselines-n50-s2"]


def test_rungs_are_those_of_the_ladder_and_keep_the_rest():
    settings = settings_of(base_width=256, encoders=("0.1m", "0.4m"))
    for job in trained(settings):
        model, rung = jobs.run_settings(settings, job).model, ladder.rung(job.encoder)
        same = ("layers", "width", "heads", "feed_forward")
        assert [getattr(model, n) for n in same] == [getattr(rung, n) for n in same]
        assert (model.base_width, model.length) == (256, settings.run.model.length)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"epochs": (1.0, 2.0), "warmup": 10}, "10 steps, and a run over 50 cells has 7"),
        ({"epochs": (0.5,)}, "do not reach each of the 50 cells"),
        ({"steps": (25, 24)}, "24 steps of 8 cells do not reach each of the 200 cells"),
        ({"encoders": (("a", {"depth": 2}),)}, "'a' sets {'depth': 2}; there are layers: int"),
        ({"encoders": (("a", {"heads": 3}),)}, "no multiple of model.heads"),
        ({"encoders": (("a", {"layers": 4}), "0.1m"), "layer": 4}, "evaluate.layer is 4"),
        ({"masking_rates": (0.15, 1.0)}, "masking.rate is 1.0"),
        ({"maskings": ("programs",)}, "name a GMT file in masking.programs"),
        ({"weights": (1.0, 1.0000001)}, "two jobs of the study are 'cab-w1-n50-s0'"),
    ],
)
def test_runs_that_cannot_be_are_refused_by_the_plan(study, message):
    with pytest.raises(ValueError, match=message):
        jobs.plan(settings_of(**study) if "layer" not in study else with_layers(study))


def with_layers(study):
    settings = settings_of(**{**study, "layer": -2})
    evaluate = dataclasses.replace(settings.evaluate, layer=study["layer"])
    return dataclasses.replace(settings, evaluate=evaluate)


def test_a_fraction_that_ends_before_its_warm_up_is_named_when_the_pool_is_known():
    settings = settings_of(sizes=(0.1, 1.0), epochs=(1.0,), warmup=20)
    jobs.plan(settings)
    with pytest.raises(ValueError, match="20 steps, and a run over 40 cells has 5"):
        jobs.plan(settings, 400)


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"objectives": ()}, r"study.objectives is \(\); give at least one"),
        ({"steps": (0,)}, "study.steps is .0,.; give whole numbers from 1"),
        ({"steps": (True,)}, "study.steps"),
        ({"epochs": (-1.0,)}, "study.epochs .* give numbers above 0"),
        ({"epochs": (float("nan"),)}, "study.epochs"),
        ({"seeds": (0, (1, 2))}, "study.seeds .* or triples"),
        ({"seeds": ((0, 1, -1),)}, "study.seeds"),
        ({"variants": ("published",)}, "study.variants has .'published'"),
        ({"weights": (0.0,)}, "study.weights has 0.0; give numbers above 0"),
        ({"weights": (("gpt", 1.0),)}, "study.weights has .'gpt', 1.0"),
        ({"weights": (("plain", 1.0, 2.0),)}, "study.weights has"),
        ({"encoders": ("7m",)}, "no rung '7m'; there are 0.1m"),
        ({"encoders": (("a/b", {}),)}, "of letters, digits"),
        ({"encoders": ("0.1m", ("0.1m", {}))}, "give each another"),
        ({"encoders": (("a", 2),)}, "study.encoders has .'a', 2.; give rungs"),
        ({"encoders": (("a", {"length": 64}),)}, "'a' sets .'length'.; make a study of each"),
        ({"masking_rates": 0.15}, "give distinct values as a tuple"),
    ],
)
def test_values_that_no_run_could_have_are_refused(study, message):
    with pytest.raises(ValueError, match=message):
        GridSettings(**{"sizes": (50,), "objectives": ("mlm",), "seeds": (0,)} | study)


def test_the_ends_are_the_smallest_and_the_largest_run_of_the_first_values_elsewhere():
    settings = settings_of(sizes=(50, 100, 200), encoders=("0.4m", "0.1m", "1m"), seeds=(4, 5),
                           epochs=(3.0, 1.0), masking_rates=(0.3, 0.15))  # fmt: skip
    found = jobs.ends(jobs.plan(settings), settings)
    assert {end: job.name for end, job in found.items()} == {
        f"{rung}, {n} cells": f"mlm-{rung}-m0.3-3epochs-n{n}-s4"
        for rung in ("0.1m", "1m") for n in (50, 200)
    }  # fmt: skip
    assert len(jobs.ends(jobs.plan(settings_of()), settings_of())) == 2


def test_cost_grows_with_steps_and_encoder_and_counts_what_is_scored():
    settings = settings_of(sizes=(50,), steps=(25, 50), encoders=("0.1m", "0.4m"))
    short, long, *_ = (jobs.cost(settings, job, 0, 300) for job in trained(settings))
    assert long == 2 * short
    small, large = (jobs.cost(settings, job, 0, 300) for job in trained(settings)[::4][:2])
    assert large > 2 * small
    [untrained, *_] = jobs.plan(settings)
    few, many = (jobs.cost(settings, untrained, scored, 300) for scored in (8, 80))
    assert many == 10 * few > 0
