"""Geneformer's weights (config.json, model.safetensors) <-> a run to embed, evaluate or fine-tune.

python -m experiments.convert --weights=FOLDER [--vocabulary=DICTIONARIES] --out=RUN
python -m experiments.convert --checkpoint=RUN --out=FOLDER [--layout=cab]
"""

import pathlib

from absl import app, flags

from experiments.launch import parse, report_errors
from scaling.geneformer import files, runs

WEIGHTS = flags.DEFINE_string("weights", None, "folder with config.json and model.safetensors")
VOCABULARY = flags.DEFINE_string(
    "vocabulary", "", "folder of Geneformer's dictionaries (.pkl), or a vocabulary.json"
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "a run's folder, or RUN/checkpoints/STEP")
LAYOUT = flags.DEFINE_enum(
    "layout", "masked_lm", ["masked_lm", "cab"],
    "BertForMaskedLM of transformers, or the published CAB checkpoints",
)  # fmt: skip
OUT = flags.DEFINE_string("out", None, "the run, or the folder, to write", required=True)


def main() -> str:
    """Converts one way or the other."""
    out = pathlib.Path(OUT.value)
    if (WEIGHTS.value is None) == (CHECKPOINT.value is None):
        raise ValueError("give --weights to make a run, or --checkpoint to write its weights")
    if out.exists():
        raise ValueError(f"{out} exists; give another --out, or remove it")
    if CHECKPOINT.value:
        weights, vocabulary = runs.of_run(pathlib.Path(CHECKPOINT.value), LAYOUT.value)
        files.write(weights, out, vocabulary)
        return f"{out}: {files.WEIGHTS}, {files.CONFIG}, a vocabulary of {len(vocabulary)} tokens"
    given = pathlib.Path(WEIGHTS.value)
    weights, vocabulary = files.read(given), runs.words_of(given, VOCABULARY.value)
    made, model = runs.into_run(weights, vocabulary, out, WEIGHTS.value), weights.model
    size = f"{model.layers} layers of width {model.width}, {weights.vocabulary} tokens"
    return f"{out}: a run (hash {made['hash']}) of {size}"


if __name__ == "__main__":
    app.run(lambda _: report_errors(main), flags_parser=parse)
