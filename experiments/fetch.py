"""Name of a public set -> its file, checked: python -m experiments.fetch NAME --to=DIR

Without a name, or with --list: the table of names, addresses, licences and citations.
"""

import pathlib

from absl import app, flags

from experiments.launch import parse, report_errors
from scaling.corpus import fetch, public_sets

TO = flags.DEFINE_string("to", "", "folder that gets the file")
LIST = flags.DEFINE_bool("list", False, "print the table of sets")


def main(names: list[str]) -> str:
    """Fetches one set, or returns the table of all."""
    if LIST.value or not names:
        return public_sets.table()
    if len(names) > 1 or not TO.value:
        raise ValueError(f"{names}, --to={TO.value!r}: give one name and a folder, NAME --to=DIR")
    return fetch.fetch(names[0], pathlib.Path(TO.value))


if __name__ == "__main__":
    app.run(lambda arguments: report_errors(lambda: main(arguments[1:])), flags_parser=parse)
