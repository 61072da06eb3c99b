"""Config -> its training step compiled for TPUs that are not there: memory, FLOPs, collectives.

python -m experiments.compile_ahead --config=configs/default.py --workdir=DIR --topology=v5e:2x4

Needs the extra "tpu" (libtpu), on any machine; TPU_SKIP_MDS_QUERY=1 keeps it from looking for one.
"""

import importlib.util
import json
import pathlib

from absl import flags

from experiments.launch import launch
from scaling.pretrain import ahead
from scaling.settings import Settings

TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "kind and shape of the TPU slice")
GENES = flags.DEFINE_integer("genes", 25_426, "V, tokens of the vocabulary")


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Compiles one step; returns what it found as lines, and writes workdir/compiled.json."""
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the TPU compiler is not installed; run: pip install --editable '.[tpu]'")
    found = ahead.compile_step(settings.run, GENES.value, TOPOLOGY.value)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "compiled.json").write_text(json.dumps(found, indent=1))
    return ahead.table(found)


if __name__ == "__main__":
    launch(main)
