"""A config -> the settings of each room, every one checked before anything is computed."""

import dataclasses
import hashlib
import json

from ml_collections import ConfigDict

from scaling.corpus.build import CorpusSettings
from scaling.corpus.simulate import Simulation
from scaling.evaluate.scores import EvaluateSettings
from scaling.pretrain.objectives import NAMES
from scaling.pretrain.step import RunSettings


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """The runs of a study: every size x objective x seed; the fields of `config.study`.

    Attributes:
      sizes: unique cells of the nested subsets.
      objectives: names of objectives.
      seeds: each is the subset, init and mask seed of its runs.
    """

    sizes: tuple[int, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not isinstance(values, tuple) or not values or len(set(values)) != len(values):
                raise ValueError(
                    f"study.{field.name} is {values}; give distinct values as a tuple, (1, 2)"
                )
        if not all(isinstance(number, int) for number in self.sizes + self.seeds):
            raise ValueError(f"study.sizes {self.sizes}, seeds {self.seeds}: give whole numbers")
        if min(self.sizes) < 2 or min(self.seeds) < 0:
            raise ValueError(f"study.sizes {self.sizes} must be 2 or more, seeds 0 or more")
        if unknown := set(self.objectives) - set(NAMES):
            raise ValueError(f"study.objectives has {sorted(unknown)}; there are {NAMES}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All of a config, typed and checked."""

    data: CorpusSettings
    simulation: Simulation
    run: RunSettings
    evaluate: EvaluateSettings
    study: GridSettings

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Reads a config of the fields of `configs/default.py`.

        Raises:
          ValueError: a setting that contradicts itself or another.
        """
        fields = {
            name: {k: tuple(v) if isinstance(v, list) else v for k, v in part.items()}
            for name, part in config.to_dict().items()
        }
        data = CorpusSettings(**fields["data"])
        if not 0 < data.held_out < 1:
            raise ValueError(f"data.held_out is {data.held_out}; give a share between 0 and 1")
        if data.score_on and not data.h5ad:
            raise ValueError("data.score_on is set, but data.h5ad, the files to train on, is not")
        run = RunSettings.from_config(fields)
        evaluate = EvaluateSettings(**fields["evaluate"])
        layers = run.model.layers
        if not -layers - 1 <= evaluate.layer <= layers:
            raise ValueError(f"evaluate.layer is {evaluate.layer}, the model has {layers} layers")
        simulation = Simulation(**fields["simulation"])
        return cls(data, simulation, run, evaluate, GridSettings(**fields["study"]))

    def hash(self) -> str:
        """Names the config, hex."""
        fields = {**dataclasses.asdict(self), "data": self.data.content()}
        content = json.dumps(fields, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]
