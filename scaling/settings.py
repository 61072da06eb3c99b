"""A config -> the settings of each room, every one checked before anything is computed."""

import dataclasses
import hashlib
import json

from ml_collections import ConfigDict

from scaling.corpus.build import CorpusSettings
from scaling.corpus.simulate import Simulation
from scaling.evaluate.held_out import EvaluateSettings
from scaling.pretrain.step import RunSettings
from scaling.sweeps.grid import GridSettings


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
        evaluate, study = EvaluateSettings(**fields["evaluate"]), GridSettings(**fields["study"])
        if {run.model.encoding, *study.encodings} - {"ranks"}:
            data = dataclasses.replace(data, expression=True)
        layers = run.model.layers
        if not -layers - 1 <= evaluate.layer <= layers:
            raise ValueError(f"evaluate.layer is {evaluate.layer}, the model has {layers} layers")
        simulation = Simulation(**fields["simulation"])
        return cls(data, simulation, run, evaluate, study)

    def content(self) -> dict:
        """The settings by part and name: all that decides what a study finds."""
        return {
            **dataclasses.asdict(self), "data": self.data.content(), "run": self.run.content()
        }

    def hash(self) -> str:
        """Names the config, hex."""
        content = json.dumps(self.content(), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]
