"""Config -> corpus, runs, scores, curves, report: python -m experiments.study --config --workdir

[--at_once=N] runs N jobs at a time on this machine; [--submit=slurm,timeout_min=240,...] on Slurm.
"""

import pathlib
import sys

from absl import flags

from experiments.launch import launch
from scaling import study
from scaling.settings import Settings

FAILED = 1  # exit status where some jobs failed
AT_ONCE = flags.DEFINE_integer(
    "at_once", 0, "jobs at a time, each in a process of its own; 0: one after another in this one",
    lower_bound=0,
)  # fmt: skip
SUBMIT = flags.DEFINE_list(
    "submit", None, "cluster (slurm, local) and submitit's parameters: slurm,timeout_min=240,"
    "slurm_partition=gpu,gpus_per_node=1"
)  # fmt: skip


def main(settings: Settings, workdir: pathlib.Path) -> str:
    """Runs the study, or what is left of it."""
    try:
        return study.run(settings, workdir, AT_ONCE.value, parameters(SUBMIT.value))
    except study.Incomplete as found:
        print(found.verdict)
        print(f"error: {found}", file=sys.stderr)
        sys.exit(FAILED)


def parameters(given: list[str] | None) -> dict | None:
    """submitit's parameters of a list "cluster, name=value, ..."; numbers as such."""
    if given is None:
        return None
    cluster, *pairs = given
    if any("=" not in pair for pair in pairs) or "=" in cluster:
        raise ValueError(f"--submit={','.join(given)}; give a cluster, then pairs name=value")
    found = dict(pair.split("=", 1) for pair in pairs)
    if "timeout_min" not in found:
        raise ValueError("--submit needs timeout_min=MINUTES, or submitit ends each job after five")
    return {"cluster": cluster} | {k: int(v) if v.isdigit() else v for k, v in found.items()}


if __name__ == "__main__":
    launch(main, many_hosts=True)
