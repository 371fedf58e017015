"""Files that are written whole or not at all."""

import os
import pathlib
import tempfile


def write_atomically(path, content):
    """Writes bytes beside `path` and moves them there in one step.

    A failure, or a kill in the middle, leaves whatever was at `path` before. Writers at the same
    time do not collide: each has its own temporary file.
    """
    path = pathlib.Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
