"""Runs every notebook top to bottom, as CI does; a cell that fails stops it.

    pip install -e ".[notebooks]" && python notebooks/run.py [name ...]

Cells tagged `skip-ci` (the `pip install` of Colab) are left out; nothing is written back.
"""

import pathlib
import sys
import tempfile

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).parent


def run(path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if "skip-ci" not in cell.metadata.get("tags", [])
    ]
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}})
        client.execute()
    print(f"{path.name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    names = sys.argv[1:] or sorted(path.name for path in FOLDER.glob("*.ipynb"))
    for name in names:
        run(FOLDER / name)
