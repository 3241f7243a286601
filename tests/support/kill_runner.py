"""A process of its own that runs stages in forks which kill themselves at a given store operation.

It forks before anything makes a store (a store's client threads do not survive a fork), so each run costs no imports.
Requests are JSON lines on stdin; each is answered with the fork's exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from ingestion_worker.store import Store, StoreConfig

from support.worker_builders import Worker

_FIELDS = ("url", "endpoint", "region", "access_key_id", "secret_access_key")


class KilledStore(Store):
    """Kills its own process with SIGKILL just before or just after its n-th operation."""

    left = 0
    after = False

    def _count(self, run: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = run()
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def get(self, *, key: str) -> bytes:
        return self._count(lambda: super(KilledStore, self).get(key=key))

    def put(self, *, key: str, data: bytes) -> None:
        self._count(lambda: super(KilledStore, self).put(key=key, data=data))

    def create(self, *, key: str, data: bytes) -> bool:
        return self._count(lambda: super(KilledStore, self).create(key=key, data=data))

    def size(self, *, key: str) -> int:
        return self._count(lambda: super(KilledStore, self).size(key=key))

    def put_file(self, *, key: str, path: Path) -> None:
        self._count(lambda: super(KilledStore, self).put_file(key=key, path=path))

    def list(self, *, prefix: str) -> Any:
        return self._count(lambda: iter(list(super(KilledStore, self).list(prefix=prefix))))


class Runner:
    """The other end: asks the runner process for runs."""

    def __init__(self, *, process: Popen[str], config: StoreConfig, folder: Path) -> None:
        self._process = process
        self._config = {name: getattr(config, name) for name in _FIELDS}
        self._folder = folder

    def killed_at(self, *, step: int, after: bool, stage: str, changes: dict[str, Any]) -> bool:
        """Run a stage that is killed at its `step`-th store operation; False if it got through before that."""
        request = {
            "config": self._config,
            "folder": str(self._folder / f"killed-{step}-{after}"),
            "step": step,
            "after": after,
            "stage": stage,
            "changes": changes,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        assert code in (0, -signal.SIGKILL), code
        return code != 0


@contextmanager
def runner(*, config: StoreConfig, folder: Path) -> Iterator[Runner]:
    """Start the runner process for one store."""
    with Popen([sys.executable, __file__], stdin=PIPE, stdout=PIPE, text=True) as process:
        yield Runner(process=process, config=config, folder=folder)


def _run(request: dict[str, Any]) -> None:
    store = KilledStore(config=StoreConfig(**request["config"]))
    store.left, store.after = request["step"], request["after"]
    worker = Worker(store=store, folder=Path(request["folder"]))
    getattr(worker, request["stage"])(**request["changes"])


def main() -> None:
    import ingestion_worker.prepare
    import ingestion_worker.publish  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _run(json.loads(line))
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
