"""Folders under construction: hidden, locked while somebody is at work on them, and swept when nobody is."""

import contextlib
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what was left is told by its age alone
    fcntl = None

_HOST = socket.gethostname()
_ABANDONED = 24 * 3600.0  # seconds without a change after which what another machine began is nobody's


@contextlib.contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Makes a hidden folder beside `folder`, which is to be renamed to it within the context.

    If that fails, it is removed, and so are the parents that were made for it.
    """
    parents = [parent for parent in folder.parents if not os.path.exists(parent)]
    try:
        with _locked(folder) as staging:
            try:
                yield staging
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else has begun to use it
            for parent in parents:
                parent.rmdir()
        raise


def sweep(folder: Path) -> None:
    """Removes what builders of `folder` left behind that were killed and could not do so themselves."""
    for left in folder.parent.glob(f".{folder.name}.*.tmp"):
        # Errors: somebody is at work on it, or removes it too, or it is another user's.
        with contextlib.suppress(OSError), _lock(left) as locked:
            # A lock may say nothing of other machines, which a shared folder may be mounted on.
            ours = locked and left.name.startswith(f".{folder.name}.{_HOST}.")
            changed = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if ours or time.time() - changed > _ABANDONED:
                shutil.rmtree(left)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is at work on a folder, and keeps others waiting meanwhile."""
    with _lock(folder, wait=True):
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Makes a folder of its own, and holds its lock."""
    with contextlib.ExitStack() as stack:
        while True:
            # Not tempfile.mkdtemp, whose folders only their owner can read: several users may share a cache.
            staging = folder.parent / f".{folder.name}.{_HOST}.{secrets.token_hex(4)}.tmp"
            staging.mkdir(parents=True)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # swept before it could be locked
                stack.enter_context(_lock(staging))
                if os.path.exists(staging):
                    break
        yield staging


@contextlib.contextmanager
def _lock(folder: Path, wait: bool = False) -> Iterator[bool]:
    """Locks a folder, which ends with the process at the latest. Gives false where that is not possible.

    Raises:
      BlockingIOError: if somebody else holds the lock, and it is not to be waited for.
    """
    if fcntl is None:
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            locked = True
        except BlockingIOError:
            raise
        except OSError:  # some network drives know no locks
            locked = False
        yield locked
    finally:
        os.close(descriptor)
