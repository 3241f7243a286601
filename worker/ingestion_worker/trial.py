"""What the pods of `helm test` run in each tenant's namespace: is the store good for what workers ask of it?"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ingestion_crds import logs
from ingestion_crds.constants import ENV_CA_FILE

from ingestion_worker import layout
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from ingestion_worker.tls import trust

LOG: Final = logging.getLogger("ingestion_worker")


def try_store(*, env: Mapping[str, str]) -> None:
    """List, write, read and delete in the bucket; nothing is left there.

    Args:
        env: as a worker's container has it.

    Raises:
        WorkerError: StoreUnavailable, also when the store writes over what is there; StoreForbidden; InvalidAttempt.
    """
    if env.get(ENV_CA_FILE):
        trust(authorities=Path(env[ENV_CA_FILE]))
    store = Store(config=StoreConfig.from_env(env=env))
    any(store.list(prefix=layout.TRIALS))
    key = layout.trial_key()
    try:
        store.create(key=key, data=b"first")
        if store.create(key=key, data=b"second"):
            raise WorkerError("StoreUnavailable", "the store ignores If-None-Match: *")
    finally:
        store.delete(key=key)


def main() -> int:
    """Try the store of this environment, and log how it went."""
    logs.configure(logger=LOG.name)
    try:
        try_store(env=os.environ)
    except WorkerError as error:
        LOG.error("%s", error.message, extra={"code": error.code})
        return 1
    LOG.info("the bucket can be listed, and its objects created once, read and deleted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
