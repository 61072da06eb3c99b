"""A config -> the settings of each room, every one checked before anything is computed."""

import dataclasses
import hashlib
import json
import pathlib

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
        _refuse_unread(run, study)
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


def _refuse_unread(run: RunSettings, study: GridSettings) -> None:
    """Refuses settings of what is not asked for, and files that are not there."""
    masks, labels = run.masking, run.supervision
    strategies, supervised = {masks.strategy, *study.maskings}, labels.columns or study.supervisions
    unread = {
        "masking.band": masks.band != (0, 1) and "band" not in strategies,
        "masking.programs": masks.programs and "programs" not in strategies,
        "masking.gene_names": masks.gene_names and "programs" not in strategies,
        "supervision.ontology": labels.ontology and not supervised,
        "supervision.ontology_labels": labels.ontology_labels and not labels.ontology,
    }
    for name, holds in unread.items():
        if holds:
            asked = "masking.strategy" if name.startswith("masking") else "supervision.columns"
            raise ValueError(
                f"{name} is set, and nothing reads it; set {asked} to what does, or leave it out"
            )
    files = {"masking.programs": masks.programs, "masking.gene_names": masks.gene_names}
    files |= {"supervision.ontology": labels.ontology}
    files |= {"supervision.ontology_labels": labels.ontology_labels}
    for name, path in files.items():
        if path and not pathlib.Path(path).is_file():
            raise ValueError(f"{name} is {path!r}, and there is no such file; give its path")
