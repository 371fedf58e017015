"""Files that are written whole or not at all."""

import os
import pathlib
import secrets
import shutil


def write_atomically(path, content):
    """Writes bytes beside `path` and moves them there in one step.

    A failure, or a kill in the middle, leaves whatever was at `path` before. Writers at the same
    time do not collide: each has its own temporary file.
    """
    path = pathlib.Path(path)
    temporary = _temporary(path)
    try:
        _write(temporary, content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_folder_atomically(path, files):
    """Writes a folder of files beside `path` and moves it there in one step.

    Args:
        path: The folder; there must be none of that name that holds anything.
        files: Dict from names to bytes.

    Raises:
        OSError: if there is a file, or a folder that is not empty, at `path`.
    """
    path = pathlib.Path(path)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        for name, content in files.items():
            _write(temporary / name, content)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _temporary(path):
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def _write(path, content):
    # "x" makes a file with the permissions that the user's umask gives.
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
