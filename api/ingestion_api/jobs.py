"""IngestionJobs by their id in this API, read live, and made from an upload."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds.constants import API_VERSION, KIND, LABEL_DOCUMENT, LABEL_KNOWLEDGE_BASE
from ingestion_crds.job import IngestionJob, Spec
from ingestion_crds.kube import ApiError, KubeClient, find, ingestion_path

from ingestion_api.job_index import JobIndex
from ingestion_api.problems import ProblemError, bad_request, busy, not_found, still_listing, unavailable
from ingestion_api.views import ShownJob

# How often a job is sent to an API server that does not answer, and how long that may take.
_PAUSES_SECONDS: Final = (0.0, 0.2, 1.0, 3.0)
_TRY_SECONDS: Final = 10.0
_TRY_AGAIN: Final = frozenset({408, 429})


class Jobs:
    """The jobs of the cluster.

    Args:
        kube: the cluster.
        index: finds names of jobs whose id is not their name.
    """

    def __init__(self, *, kube: KubeClient, index: JobIndex) -> None:
        self._kube = kube
        self._index = index

    async def find(self, *, namespace: str, wanted: uuid.UUID) -> IngestionJob:
        """Return a job as it is now: by the name that the index has for the id, else by the id as its name.

        Raises:
            ProblemError: 404 when this namespace has no such job; 503 when that is not known yet.
            ApiError: the API server does not answer.
        """
        text = str(wanted)
        # Asked before the look-up, which does not know what is listed while the reads are under way.
        synced = self._index.synced
        indexed = self._index.name_of(namespace=namespace, job_id=text)
        # The index may be a moment old, and the name another job's by now.
        for name in dict.fromkeys((indexed or text, text)):
            job = await self.read(namespace=namespace, name=name)
            if job is not None and job.job_id == text:
                return job
        if not synced:
            raise still_listing()
        raise not_found(f"there is no ingestion job {text}")

    async def read(self, *, namespace: str, name: str) -> IngestionJob | None:
        """Return the job of this name as it is now, None when there is none.

        Raises:
            ApiError: the API server does not answer, or refuses.
        """
        body = await find(self._kube, ingestion_path(namespace, name))
        if body is None:
            return None
        self._index.put(body)
        return ShownJob.model_validate(body)

    async def create(self, *, namespace: str, spec: Spec) -> uuid.UUID:
        """Create a job and return its id, which is its name.

        Raises:
            ProblemError: 400 with the API server's reason when it refuses the job; 429 over a quota; 503 when
                the namespace, or its quota, cannot take it now.
            JobUnknownError: the API server does not say whether it has the job, or has not before the shutdown.
            ApiError: it refuses the job for another reason.
        """
        identity = uuid.uuid4()
        body: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": str(identity),
                "labels": {LABEL_KNOWLEDGE_BASE: spec.knowledge_base, LABEL_DOCUMENT: spec.document.id},
            },
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_unset=True),
        }
        try:
            await self._create(namespace, str(identity), body)
        except asyncio.CancelledError as error:
            raise JobUnknownError(str(identity)) from error
        return identity

    async def _create(self, namespace: str, name: str, body: JsonObject) -> None:
        """Send a job until the API server says that it has it, or that it will not have it."""
        path = ingestion_path(namespace)
        refused: ApiError | None = None
        for pause in _PAUSES_SECONDS:
            await asyncio.sleep(pause)
            try:
                self._index.put(await self._kube.request("POST", path, body=body, timeout=_TRY_SECONDS))
            except ApiError as error:
                if error.already_exists:
                    return  # the name is this job's alone: an earlier POST has made it
                refused = error if 400 <= error.status < 500 and error.status not in _TRY_AGAIN else None
                # A new job cannot be in conflict: it is a quota on jobs, whose count others change at the same time.
                if refused is not None and not error.conflict:
                    if not pause:
                        raise _refusal(namespace, error) from None
                    break
            else:
                return
        # An earlier POST may have come through all the same: the quota may be used up by this very job.
        path = ingestion_path(namespace, name)
        try:
            self._index.put(await self._kube.request("GET", path, timeout=_TRY_SECONDS))
        except ApiError as error:
            if refused is not None and error.not_found:
                raise _refusal(namespace, refused) from error
            raise JobUnknownError(name) from error


def _refusal(namespace: str, error: ApiError) -> Exception:
    """Return what a refused job means to a client."""
    if error.status in (400, 422) or error.denied:
        return bad_request(error.message, error="invalid_job")
    if error.status == 403 and "exceeded quota" in error.message:
        return busy("the namespace's quota of ingestion jobs is used up")
    if error.status == 404:
        return unavailable(f"the namespace {namespace} cannot take jobs now")
    if error.conflict:
        return unavailable("the namespace's quota of ingestion jobs keeps changing; try again")
    return error


class JobUnknownError(ProblemError):
    """It cannot be found out whether the job was made, so what it needs must stay.

    Without Retry-After: a client that repeats the request by itself could make a second document.
    """

    def __init__(self, name: str) -> None:
        super().__init__(
            status=503,
            error="unknown",
            message=f"the cluster's API server has not answered; look whether job {name} exists before a repeat",
        )
