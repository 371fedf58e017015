"""What all benchmarks share: the machine's name, raw results, tables in README.md."""

import json
import os
import pathlib
import platform
import time

FOLDER = pathlib.Path(__file__).parent


def machine():
    """The machine and the versions that a figure was measured with."""
    import ai_edge_litert
    import keras
    import tensorflow as tf

    model = platform.processor() or platform.machine()
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        model = next(x.split(":")[1].strip() for x in info.splitlines() if "model name" in x)
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "ai_edge_litert": getattr(ai_edge_litert, "__version__", "2.x"),
        "date": time.strftime("%Y-%m-%d"),
    }


class Results:
    """Raw results in `results/NAME.json`, kept one after the other.

    Args:
        name: Of the file.
        keep: Whether they are written.
    """

    def __init__(self, name, keep=True):
        self._keep = keep
        self._path = FOLDER / "results" / f"{name}.json"
        self.all = self._read()

    def _read(self):
        return json.loads(self._path.read_text())["results"] if self._path.exists() else {}

    def put(self, value, *place):
        """Puts a value under keys within keys."""
        if self._keep:
            # Other parts may be running beside this one.
            self.all = self._read()
        at = self.all
        for key in place[:-1]:
            at = at.setdefault(key, {})
        at[place[-1]] = value
        if self._keep:
            self._path.parent.mkdir(exist_ok=True)
            content = {"machine": machine(), "results": self.all}
            self._path.write_text(json.dumps(content, indent=1) + "\n")


def publish(name, table, results, command, note=""):
    """Prints a table, keeps the raw results as JSON and puts the table into README.md.

    Args:
        name: Of the section in README.md, between `<!-- name -->` and `<!-- /name -->`.
        table: A `keras_compress.tables.Table`.
        results: Anything `json` takes.
        command: The command that prints the table again.
        note: Text under the table.
    """
    on = machine()
    print(table.to_text())
    (FOLDER / "results").mkdir(exist_ok=True)
    raw = FOLDER / "results" / f"{name}.json"
    raw.write_text(json.dumps({"machine": on, "results": results}, indent=1) + "\n")
    text = (
        f"{table.to_markdown()}\n\n`{command}` on {on['cpu']} ({on['cores']} cores), TensorFlow "
        f"{on['tensorflow']}, Keras {on['keras']}, LiteRT {on['ai_edge_litert']}, {on['date']}; "
        f"raw results in `results/{name}.json`. {note}"
    ).strip()
    readme = FOLDER / "README.md"
    page = readme.read_text()
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in page or end not in page:
        raise SystemExit(f"README.md has no section {start} ... {end}")
    before, rest = page.split(start)
    readme.write_text(f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}")
