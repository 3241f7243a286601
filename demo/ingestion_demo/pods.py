"""Watch which worker pods are made, so that nobody has to believe a counter."""

import subprocess
import threading
from collections import defaultdict
from pathlib import Path
from typing import Final, Self

from ingestion_crds.constants import LABEL_GENERATION, LABEL_JOB_UID, LABEL_STAGE
from local_cluster import binaries, process

_LABELS: Final = [label.replace(".", "\\.") for label in (LABEL_JOB_UID, LABEL_STAGE, LABEL_GENERATION)]
COLUMNS: Final = " ".join(["{.metadata.uid}", *(f"{{.metadata.labels.{label}}}" for label in _LABELS)]) + "{'\\n'}"


class PodWatch:
    """Remembers the UID of every worker pod of a namespace while the block runs."""

    def __init__(self, *, kubeconfig: Path, namespace: str) -> None:
        self._command = [
            *(str(binaries.path(name="kubectl")), "--kubeconfig", str(kubeconfig), "--namespace", namespace),
            *("get", "pods", "--watch", "--selector", LABEL_JOB_UID, "--output", f"jsonpath={COLUMNS}"),
        ]
        self._seen: dict[tuple[str, str, str], set[str]] = defaultdict(set)
        self._ended = False
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._child is not None:
            self._child.terminate()

    def uids(self, *, job_uid: str, stage: str, generation: int) -> set[str]:
        """Return the pods of one attempt of a job seen so far.

        Args:
            job_uid: the IngestionJob's.
            stage: the stage that they run.
            generation: the attempt's.
        """
        return set(self._seen[(job_uid, stage, str(generation))])

    def _watch(self) -> None:
        while not self._ended:  # the API server ends a watch after some minutes
            self._child = process.spawn(self._command, stdout=subprocess.PIPE)
            assert self._child.stdout is not None
            for line in self._child.stdout:
                uid, *attempt = line.decode().split()
                if len(attempt) == 3:
                    self._seen[(attempt[0], attempt[1], attempt[2])].add(uid)
