"""Published encoders and the ladder's rungs cost what they say, against initialised shapes."""

import pathlib

import jax
import pytest

from configs import default, gf_v1_10m, gf_v2_104m, gf_v2_316m
from configs import ladder as config_of_rung
from scaling.pretrain import ladder
from scaling.pretrain.model import count_parameters
from scaling.pretrain.step import initial_params
from scaling.settings import Settings

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "ladder.md"


def counts(model, vocabulary: int) -> dict[str, int]:
    return count_parameters(jax.eval_shape(lambda: initial_params(0, model, vocabulary)))


@pytest.mark.parametrize(
    ("preset", "vocabulary", "millions", "of_layers"),
    [
        (gf_v1_10m, 25_426, 10.29, 3.16),
        (gf_v2_104m, 20_275, 104.39, 85.05),
        (gf_v2_316m, 20_275, 316.35, 286.92),
    ],
)
def test_presets_have_the_size_of_their_name(preset, vocabulary, millions, of_layers):
    run = Settings.from_config(preset.get_config()).run
    found = counts(run.model, vocabulary)
    assert round(found["parameters"] / 1e6, 2) == millions
    assert round(found["non_embedding_parameters"] / 1e6, 2) == of_layers
    assert f"{int(found['parameters'] / 1e6)}m" == preset.__name__.split("_")[-1]
    assert f"{of_layers}M" in preset.__doc__ and f"{millions}M" in preset.__doc__
    assert run.model.width == 64 * run.model.heads
    assert run.train.warmup == 10_000 and run.train.total_steps(27_400_000) == 856_250
    assert (run.objective.name, run.model.base_width) == ("mlm", 0)


@pytest.mark.parametrize("name", ladder.rungs())
def test_a_rung_costs_what_it_says(name):
    run = Settings.from_config(config_of_rung.get_config(name)).run
    rung = ladder.rung(name)
    assert counts(run.model, 300)["non_embedding_parameters"] == rung.parameters
    assert run.model.width == 64 * run.model.heads == run.model.feed_forward // 4
    number, unit = float(name[:-1]), {"m": 1e6, "b": 1e9}[name[-1]]
    assert abs(number * unit - rung.parameters) <= 0.5 * 10 ** (len(str(rung.parameters)) - 1)
    # What carries over to a rung is V1's rate, at V1's width.
    assert run.model.ratio == default.get_config().model.width / run.model.width
    assert run.train == Settings.from_config(default.get_config()).run.train


def test_the_ladder_rises_evenly_to_a_billion_through_v2s_encoders():
    rungs = list(ladder.rungs().values())
    assert len(rungs) == len(ladder.HEADS)  # no two of one name
    assert (rungs[0].name, rungs[-1].name) == ("0.1m", "1b")
    costs = [rung.parameters for rung in rungs]
    assert all(2 < b / a < 4 for a, b in zip(costs, costs[1:], strict=False))
    shapes = {(rung.layers, rung.width, rung.heads, rung.feed_forward) for rung in rungs}
    for preset in (gf_v2_104m, gf_v2_316m):
        model = preset.get_config().model
        assert (model.layers, model.width, model.heads, model.feed_forward) in shapes


@pytest.mark.parametrize("name", ["", "7m"])
def test_an_unknown_rung_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=f"no rung '{name}'; there are 0.1m, 0.4m, 1m, .* 1b"):
        config_of_rung.get_config(name)


def test_the_documented_table_is_that_of_the_code():
    assert ladder.table() in DOCS.read_text()
