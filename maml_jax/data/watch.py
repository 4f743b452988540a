"""Whether the files that images are read from stay as they are while they are."""

import contextlib
import os
from collections.abc import Mapping

import numpy as np

from maml_jax.data.store import ClassStore
from maml_jax.errors import DataError


class Watch(contextlib.AbstractContextManager):
    """Tells when a store that is in use is changed: its files are mapped into memory, and so would the images be.

    On a CPU that holds for images on the device, too, which are those of the map. A file that is deleted or replaced
    stays what it was for those who have it open, and is no change.

    Args:
      stores: in use from now on.
    """

    def __init__(self, stores: Mapping[str, ClassStore]):
        self._files, self._known = {}, {}
        for store in stores.values():
            if isinstance(store.images, np.memmap):
                path = store.images.filename
                self._files[path] = os.open(path, os.O_RDONLY)
                self._known[path] = _state(self._files[path])

    def check(self) -> None:
        """Looks again, which takes microseconds.

        Raises:
          DataError: a file has been changed.
        """
        for path, file in self._files.items():
            if _state(file) != self._known[path]:
                raise DataError(
                    f"{path} was changed while it was in use: what has been computed since may be wrong, and is not "
                    f"kept; delete the folder {os.path.dirname(path)} and run the same command again"
                )

    def __exit__(self, *exception) -> None:
        for file in self._files.values():
            os.close(file)


def _state(file: int) -> tuple[int, int]:
    """Size and time of the last change."""
    status = os.fstat(file)
    return status.st_size, status.st_mtime_ns
