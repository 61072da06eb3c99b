"""A corpus folder -> whether it is whole, or what it holds: python -m experiments.corpus verify DIR

python -m experiments.corpus info DIR prints cells by label, donor, batch, assay and length.
"""

import pathlib

from absl import app

from experiments.launch import report_errors
from scaling.corpus import inspect
from scaling.corpus.shards import Corpus


def main(arguments: list[str]) -> None:
    """Prints what was found; exit status 2 where a corpus is not whole."""
    if len(arguments) != 3 or arguments[1] not in ("verify", "info"):
        raise app.UsageError("give verify or info, and the folder of a corpus")
    folder = pathlib.Path(arguments[2])
    if arguments[1] == "info":
        report_errors(lambda: inspect.info(Corpus.open(folder)))
    else:
        report_errors(lambda: verified(folder))


def verified(folder: pathlib.Path) -> str:
    """Text, or a ValueError with every fault."""
    if faults := inspect.verify(folder):
        raise ValueError("\n".join(faults))
    return f"{folder}: every file is as it was built"


if __name__ == "__main__":
    app.run(main)
