"""A corpus folder -> whether it is whole, or what it holds: python -m experiments.corpus verify DIR

python -m experiments.corpus info DIR prints cells by label, donor, batch, assay and length;
python -m experiments.corpus export DIR --out=FOLDER writes a Hugging Face data set of its tokens.
"""

import pathlib

from absl import app, flags

from experiments.launch import report_errors
from scaling.corpus import inspect, ready_tokens
from scaling.corpus.shards import Corpus

OUT = flags.DEFINE_string("out", None, "folder that export writes")
LENGTH = flags.DEFINE_integer("length", None, "tokens that export cuts a cell to", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Prints what was found; exit status 2 where a corpus is not whole."""
    commands = {"verify": verified, "info": describe, "export": export}
    if len(arguments) != 3 or arguments[1] not in commands:
        raise app.UsageError(f"give one of {', '.join(commands)}, and the folder of a corpus")
    report_errors(lambda: commands[arguments[1]](pathlib.Path(arguments[2])))


def describe(folder: pathlib.Path) -> str:
    """Text that says what a corpus holds."""
    return inspect.info(Corpus.open(folder))


def verified(folder: pathlib.Path) -> str:
    """Text, or a ValueError with every fault."""
    if faults := inspect.verify(folder):
        raise ValueError("\n".join(faults))
    return f"{folder}: every file is as it was built"


def export(folder: pathlib.Path) -> str:
    """Text that says what was written."""
    if not OUT.value:
        raise ValueError("export needs --out=FOLDER, which must not exist")
    corpus = Corpus.open(folder)
    ready_tokens.write(corpus, pathlib.Path(OUT.value), LENGTH.value)
    return f"{OUT.value}: {len(corpus.obs)} cells; datasets.load_from_disk opens it"


if __name__ == "__main__":
    app.run(main)
