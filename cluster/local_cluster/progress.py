"""Progress lines for people, and a lock between runs."""

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def say(text: str) -> None:
    """Print one line with the time of day on stderr (stdout belongs to the command's answer).

    That nobody reads it any more keeps nothing from being done: what follows may be to clean up.
    """
    with contextlib.suppress(OSError):  # a pipe without a reader, a terminal that was closed
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def timed(text: str) -> Iterator[None]:
    """Say that `text` begins and how many seconds it took; failures say so too."""
    begin = time.monotonic()
    say(f"{text} ...")
    try:
        yield
    except BaseException:
        say(f"{text}: failed after {time.monotonic() - begin:.1f} s")
        raise
    say(f"{text}: done in {time.monotonic() - begin:.1f} s")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (created); waits, and says so, while another run holds it.

    The kernel drops the lock when its holder dies, so a killed run blocks nobody.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another run that holds {path}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
