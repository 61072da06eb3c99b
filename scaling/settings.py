"""A config -> the settings of each room, every one checked before anything is computed."""

import dataclasses
import hashlib
import json

from ml_collections import ConfigDict

from scaling.corpus.build import CorpusSettings
from scaling.corpus.simulate import Simulation
from scaling.corpus.subsets import SCHEMES
from scaling.evaluate.held_out import EvaluateSettings
from scaling.pretrain.objectives import NAMES
from scaling.pretrain.step import RunSettings


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """The runs of a study: every size x objective x seed; the fields of `config.study`.

    Attributes:
      sizes: unique cells of the nested subsets: counts from 2; fractions of the training pool,
        floats above 0 to 1.0; ladders "first:last:steps", evenly spaced in the logarithm from
        the first count to the last, as "100:1e6:9".
      objectives: names of objectives.
      seeds: each is the subset, init and mask seed of its runs.
      schemes: of the subsets, from `subsets.SCHEMES`.
    """

    sizes: tuple[int | float | str, ...]
    objectives: tuple[str, ...]
    seeds: tuple[int, ...]
    schemes: tuple[str, ...] = ("random",)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if not isinstance(values, tuple) or not values or len(set(values)) != len(values):
                raise ValueError(
                    f"study.{field.name} is {values}; give distinct values as a tuple, (1, 2)"
                )
        self.cells(None)
        if not all(isinstance(seed, int) and seed >= 0 for seed in self.seeds):
            raise ValueError(f"study.seeds is {self.seeds}; give whole numbers from 0")
        for field, names in (("objectives", NAMES), ("schemes", SCHEMES)):
            if unknown := set(getattr(self, field)) - set(names):
                raise ValueError(f"study.{field} has {sorted(unknown)}; there are {names}")

    def cells(self, pool: int | None) -> tuple[int, ...]:
        """The sizes as counts, rising and distinct.

        Args:
          pool: cells of the training pool; None where not known: fractions are left out.

        Raises:
          ValueError: a size that is neither count, fraction nor ladder, or below 2 cells.
        """
        found = set()
        for size in self.sizes:
            if isinstance(size, str):
                found.update(_ladder(size))
            elif isinstance(size, int) and size >= 2:
                found.add(size)
            elif isinstance(size, float) and 0 < size <= 1:
                if pool is not None and round(size * pool) < 2:
                    raise ValueError(f"study.sizes has {size}: below 2 cells of a pool of {pool}")
                found.update([round(size * pool)] if pool is not None else [])
            else:
                raise ValueError(
                    f"study.sizes has {size!r}; give counts from 2, fractions of the training "
                    "pool as 0.1 or 1.0, or ladders of counts as '100:1e6:9' (first:last:steps)"
                )
        return tuple(sorted(found))


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

    def content(self) -> dict:
        """The settings by part and name: all that decides what a study finds."""
        return {
            **dataclasses.asdict(self), "data": self.data.content(), "run": self.run.content()
        }

    def hash(self) -> str:
        """Names the config, hex."""
        content = json.dumps(self.content(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def _ladder(text: str) -> list[int]:
    """Counts of a ladder "first:last:steps"."""
    try:
        first, last, steps = (float(part) for part in text.split(":"))
        whole = all(number.is_integer() for number in (first, last, steps))
        if not (whole and 2 <= first < last and steps >= 2):
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"study.sizes has {text!r}; a ladder is first:last:steps in whole numbers, as "
            "'100:1e6:9', first from 2, last above it, steps from 2"
        ) from error
    return [round(first * (last / first) ** (k / (steps - 1))) for k in range(int(steps))]
