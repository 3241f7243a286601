"""The REST calls that the demo, and tests, make as any client would."""

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
from ingestion_crds.constants import TERMINAL_PHASES
from local_cluster.errors import LocalClusterError

PREFIX: Final = "/v1/knowledge-base"
POLL_SECONDS: Final = 0.5


class Rest:
    """A client of the REST API with one tenant's key."""

    def __init__(self, *, url: str, key: str) -> None:
        self._client = httpx.Client(base_url=url + PREFIX, headers={"x-api-key": key}, timeout=120, trust_env=False)

    def wait_for_key(self) -> None:
        """Return when the key is accepted: the API reads new ones at most once a second.

        Raises:
            LocalClusterError: it is not within 15 s.
        """
        for _ in range(30):
            # A port-forward may be taken up anew meanwhile.
            with suppress(httpx.TransportError):
                # Without a search's cost: an unknown job is 404 for a good key, 401 for another.
                if self._client.get(f"/ingestion-jobs/{uuid.uuid4()}").status_code != 401:
                    return
            time.sleep(POLL_SECONDS)
        raise LocalClusterError("the API does not accept the key that was minted")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def upload(self, *, knowledge_base: str, file: Path, content_type: str, options: dict[str, Any]) -> str:
        """Upload a document and return the id of the job that ingests it.

        Args:
            knowledge_base: UUID.
            file: the document.
            content_type: its media type.
            options: the form's other fields.

        Raises:
            LocalClusterError: the API refuses it.
        """
        with file.open("rb") as content:
            answer = self._call(
                "POST",
                f"/knowledge-bases/{knowledge_base}/ingest",
                files={"file": (file.name, content, content_type)},
                data=options,
            )
        return str(answer["ingestion_job_id"])

    def upload_several(self, *, knowledge_base: str, files: Sequence[Path], options: dict[str, Any]) -> str:
        """Upload documents in one request and return the id of the batch that ingests them.

        Args:
            knowledge_base: UUID.
            files: the documents.
            options: the form's other fields.

        Raises:
            LocalClusterError: the API refuses them.
        """
        parts = [("file", (file.name, file.read_bytes(), "application/octet-stream")) for file in files]
        answer = self._call("POST", f"/knowledge-bases/{knowledge_base}/ingest", files=parts, data=options)
        return str(answer["ingestion_job_id"])

    def documents(self, job_id: str) -> list[dict[str, Any]]:
        """Return the first documents of a job."""
        items: list[dict[str, Any]] = self._call("GET", f"/ingestion-jobs/{job_id}/documents")["items"]
        return items

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job's progress."""
        return self._call("GET", f"/ingestion-jobs/{job_id}")

    def retry(self, job_id: str) -> None:
        """Ask for a retry."""
        self._call("POST", f"/ingestion-jobs/{job_id}/retry")

    def search(self, *, knowledge_base: str, query: str, limit: int = 3) -> list[dict[str, Any]]:
        """Return the best chunks for a query.

        Args:
            knowledge_base: UUID.
            query: the question.
            limit: chunks at most.

        Raises:
            LocalClusterError: the API refuses it.
        """
        body = {"query": query, "kb_ids": [knowledge_base], "limit": limit}
        answer = self._call("POST", "/search", json=body)
        results: list[dict[str, Any]] = answer["results"]
        return results

    def follow(
        self,
        job_id: str,
        *,
        show: Callable[[dict[str, Any]], None],
        until: Callable[[dict[str, Any]], bool],
        seconds: float,
    ) -> dict[str, Any]:
        """Poll a job and return it as it was last.

        Args:
            job_id: the job's.
            show: is given each answer.
            until: says of an answer whether it is the last.
            seconds: how long at most.

        Raises:
            LocalClusterError: it takes longer.
        """
        deadline = time.monotonic() + seconds
        while True:
            job = self.job(job_id)
            show(job)
            if until(job):
                return job
            if time.monotonic() > deadline:
                raise LocalClusterError(f"job {job_id} did not get there within {seconds:.0f} s: {job}")
            time.sleep(POLL_SECONDS)

    def ended(self, job_id: str, *, generation: int = 0, seconds: float = 600) -> dict[str, Any]:
        """Wait for the end of an attempt and return the job.

        Args:
            job_id: the job's.
            generation: the retry that is to be taken up.
            seconds: how long at most.

        Raises:
            LocalClusterError: it takes longer.
        """
        return self.follow(job_id, show=lambda _: None, until=finished(generation), seconds=seconds)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        # A port-forward may be taken up anew between two calls; reading again is harmless.
        for _ in range(3):
            try:
                response = self._client.request(method, path, **arguments)
                break
            except httpx.TransportError:
                if method != "GET":
                    raise
                time.sleep(1)
        else:
            raise LocalClusterError(f"{method} {path}: no answer")
        if response.status_code >= 400:
            raise LocalClusterError(f"{method} {path}: {response.status_code} {response.text}")
        answer: dict[str, Any] = response.json()
        return answer


def finished(generation: int) -> Callable[[dict[str, Any]], bool]:
    """A condition for `follow`: the job has ended, and has taken up this retry generation."""
    return lambda job: job["status"] in TERMINAL_PHASES and job["retry_generation"] >= generation
