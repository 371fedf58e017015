"""Every system of the survey and where it is: `kc.survey`.

`python -m keras_compress.survey` prints the table, `python -m keras_compress.survey README.md`
writes it into the README between the lines `<!-- survey -->` and `<!-- /survey -->`.
"""

import argparse
import csv
import dataclasses
import importlib.resources
import pathlib
import sys
import textwrap

from keras_compress.files import write_atomically
from keras_compress.tables import Table

BEGIN = "<!-- survey -->"
END = "<!-- /survey -->"


@dataclasses.dataclass(frozen=True)
class System:
    """One system of the survey.

    Attributes:
        title: Authors and title of the paper.
        year: Year of the paper.
        section: Section of the survey, such as `"2.2.1"`.
        name: Public object, such as `"kc.layers.TTDense"`; empty if it is not there yet.
        test: Test file, from the root of the repository; empty if there is none.
        pays_off: What it buys, and what it does not.
    """

    title: str
    year: int
    section: str
    name: str
    test: str
    pays_off: str


class Survey:
    """What `table` returns: prints as text, shows as HTML in a notebook.

    Iterating gives its `System`s.
    """

    def __init__(self, systems):
        self.systems = list(systems)

    def __iter__(self):
        return iter(self.systems)

    def __len__(self):
        return len(self.systems)

    def to_markdown(self):
        """A GitHub table; names are code, and link to their test."""
        return self._table(lambda system: system.title, _linked).to_markdown()

    def to_pandas(self):
        """The systems as a `pandas.DataFrame`, a row each."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(system) for system in self.systems])

    def __repr__(self):
        # Full titles would make the lines of a terminal wrap.
        table = self._table(
            lambda system: textwrap.shorten(system.title, 60, placeholder="..."),
            lambda system: system.name,
        )
        there = sum(bool(system.name) for system in self.systems)
        return f"{table.to_text()}\n{there} of {len(self)} systems are there."

    def _repr_html_(self):
        return self._table(lambda system: system.title, lambda system: system.name).to_html()

    def _table(self, title, name):
        header = ["section", "year", "system", "name", "pays off"]
        rows = [[s.section, s.year, title(s), name(s), s.pays_off] for s in self.systems]
        return Table(header, rows, align="<<<<<")


def table():
    """The systems of the survey, in its order.

    Returns:
        A `Survey`.

    Example:

    >>> systems = {system.title: system for system in table()}
    >>> systems["Novikov et al.: Tensorizing Neural Networks"].name
    'kc.layers.TTDense'
    """
    # Read here and not on import: only who asks for the survey pays for it.
    file = importlib.resources.files("keras_compress") / "survey.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    return Survey(System(**{**row, "year": int(row["year"])}) for row in rows)


def write_section(path):
    """Replaces what is between the two markers of a Markdown file by the table.

    Args:
        path: The file; it is replaced whole or left as it is.

    Raises:
        ValueError: if the file does not have each marker once, in order.
    """
    path = pathlib.Path(path)
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    counts = (text.count(BEGIN), text.count(END))
    if counts != (1, 1) or END not in rest:
        raise ValueError(
            f"survey: {path} must have the line `{BEGIN}` once and, after it, the line `{END}` "
            f"once; it has {counts[0]} and {counts[1]}. Add both where the table shall go."
        )
    section = f"{BEGIN}\n{table().to_markdown()}\n{END}"
    write_atomically(path, f"{before}{section}{after}".encode())


def main(arguments=None):
    """Prints the table, or writes it into a file; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_compress.survey",
        description="Prints the table of all systems of the survey and where they are.",
    )
    parser.add_argument(
        "file", nargs="?", help=f"Markdown file to write the table into, between {BEGIN} and {END}"
    )
    options = parser.parse_args(arguments)
    if options.file is None:
        print(table())
        return 0
    try:
        write_section(options.file)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _linked(system):
    name = f"`{system.name}`" if system.name else ""
    return f"[{name}]({system.test})" if name and system.test else name


if __name__ == "__main__":
    sys.exit(main())
