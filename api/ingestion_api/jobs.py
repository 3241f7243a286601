"""IngestionJobs and IngestionBatches by their id in this API, read live, and made from an upload."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from ingestion_crds import JsonObject
from ingestion_crds.batch import BatchSpec, IngestionBatch
from ingestion_crds.constants import API_VERSION, BATCH_KIND, GROUP, KIND, LABEL_DOCUMENT, LABEL_KNOWLEDGE_BASE
from ingestion_crds.job import Document, Spec
from ingestion_crds.kube import ApiError, KubeClient, batch_path, find, ingestion_path
from ingestion_crds.retry import Retryable
from pydantic import ValidationError

from ingestion_api.forms import words
from ingestion_api.idempotency import KeyDigest
from ingestion_api.job_index import JobIndex
from ingestion_api.problems import ProblemError, bad_request, not_found, quota_used_up, still_listing, unavailable
from ingestion_api.views import ShownBatch, ShownJob

# How often a job is sent to an API server that does not answer, and how long that may take.
_PAUSES_SECONDS: Final = (0.0, 0.2, 1.0, 3.0)
_TRY_SECONDS: Final = 10.0
# Besides those from 500 on: whether it was carried out, or is yet to be, is not said.
_UNSAID: Final = frozenset({0, 408})
# Too many requests: the API server has not begun with it.
_TOO_MANY: Final = 429
_PATHS: Final = {KIND: ingestion_path, BATCH_KIND: batch_path}


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """What is about to be made.

    Args:
        namespace: the tenant's.
        knowledge_base: UUID.
        name: the resource's, and its id in this API.
        keyed: by an Idempotency-Key, so that another request may make the same.
    """

    namespace: str
    knowledge_base: str
    name: str
    keyed: bool

    @classmethod
    def of(cls, *, namespace: str, knowledge_base: str, key: KeyDigest | None) -> Self:
        """Return what a request makes: by an Idempotency-Key the same each time, else something new.

        Args:
            namespace: the tenant's.
            knowledge_base: UUID.
            key: the request's Idempotency-Key.
        """
        told = f"{GROUP}/ingest/{namespace}/{knowledge_base}/{key}"
        identity = uuid.uuid4() if key is None else uuid.uuid5(uuid.NAMESPACE_OID, told)
        return cls(namespace=namespace, knowledge_base=knowledge_base, name=str(identity), keyed=key is not None)


class Jobs:
    """The jobs and the batches of the cluster.

    Args:
        kube: the cluster.
        index: finds names of jobs whose id is not their name.
    """

    def __init__(self, *, kube: KubeClient, index: JobIndex) -> None:
        self._kube = kube
        self._index = index

    async def find(self, *, namespace: str, wanted: uuid.UUID) -> Retryable:
        """Return a job, or a batch, as it is now: by what the index has for the id, else by the id as its name.

        Raises:
            ProblemError: 404 when this namespace has nothing of this id; 503 when that is not known yet; 500 for
                what this release does not understand.
            ApiError: the API server does not answer.
        """
        text = str(wanted)
        # Asked before the look-up, which does not know what is listed while the reads are under way.
        synced = self._index.synced
        indexed = self._index.named(namespace=namespace, job_id=text)
        # The index may be a moment old, and the name another job's by now.
        for kind, name in dict.fromkeys((indexed or (KIND, text), (KIND, text), (BATCH_KIND, text))):
            job = await self._read(kind, namespace, name)
            if job is not None and job.job_id == text:
                return job
        if not synced:
            raise still_listing()
        raise not_found(f"there is no ingestion job {text}")

    async def again(self, job: Retryable) -> Retryable:
        """Return a job, or a batch, as it is now.

        Raises:
            ProblemError: 404 when it is gone.
            ApiError: the API server does not answer, or refuses.
        """
        kind = BATCH_KIND if isinstance(job, IngestionBatch) else KIND
        live = await self._read(kind, job.metadata.namespace, job.metadata.name)
        if live is None or live.metadata.uid != job.metadata.uid:
            raise not_found(f"the ingestion job {job.job_id} was deleted")
        return live

    async def _read(self, kind: str, namespace: str, name: str) -> Retryable | None:
        """Return what has this name as it is now, None when there is nothing."""
        body = await find(self._kube, _PATHS[kind](namespace, name))
        if body is None:
            return None
        self._index.put(body)
        try:
            return ShownBatch.model_validate(body) if kind == BATCH_KIND else ShownJob.model_validate(body)
        except ValidationError as error:
            raise UnreadableJobError(name, error) from error

    async def made(self, making: Making) -> Sequence[Document] | None:
        """Return the documents of what a request with the same key has made, None when there is nothing.

        Raises:
            ProblemError: 503 while it is being deleted.
            ApiError: the API server does not answer, or refuses.
        """
        if not making.keyed:
            return None
        for kind in _PATHS:
            made = await self._read(kind, making.namespace, making.name)
            if made is None:
                continue
            if made.metadata.deletion_timestamp is not None:
                raise unavailable(f"the ingestion job {making.name} is being deleted; try again")
            return _documents(made)
        return None

    async def check_quota(self, making: Making, first: Document) -> None:
        """Ask whether a quota has room for a batch, before most of its files are sent.

        Args:
            making: its name, and where it belongs.
            first: of its documents.

        Raises:
            ProblemError: 429 over a quota, unless it is a request with the same key that has used it up; 503 while
                what that has made is being deleted. Whatever else is wrong is told when it is made.
            ApiError: over a quota, and the API server does not say what there is.
        """
        body: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": BATCH_KIND,
            "metadata": {"name": making.name},
            "spec": {
                "knowledgeBase": making.knowledge_base,
                "documents": [first.model_dump(mode="json", by_alias=True, exclude_none=True)],
            },
        }
        path, query = batch_path(making.namespace), {"dryRun": "All"}
        try:
            await self._kube.request("POST", path, query=query, body=body, timeout=_TRY_SECONDS)
        except ApiError as error:
            if _over_quota(error) and await self.made(making) is None:
                _refuse(making.namespace, error)

    async def create(self, making: Making, documents: Sequence[Document], chosen: JsonObject) -> Sequence[Document]:
        """Create a job for one document, or a batch for several, unless a request with the same key has been first.

        Args:
            making: its name, and where it belongs.
            documents: what it ingests.
            chosen: the other fields of its spec.

        Returns:
            the documents of what is there: these, or those of the request that has been first.

        Raises:
            ValidationError: a spec with these fields is none.
            ProblemError: 400 with the API server's reason when it refuses the job; 429 over a quota; 503 when
                the namespace, its quota or the API server cannot take it now, or while the one with this key is being
                deleted.
            JobUnknownError: the API server does not say whether it has the job, or has not before the shutdown.
            ApiError: it refuses the job for another reason, or does not answer before it is sent the job.
        """
        kind = KIND if len(documents) == 1 else BATCH_KIND
        told = [document.model_dump(mode="json", by_alias=True, exclude_none=True) for document in documents]
        labels = {LABEL_KNOWLEDGE_BASE: making.knowledge_base}
        fields = {"knowledgeBase": making.knowledge_base, **chosen}
        spec: Spec | BatchSpec
        if kind == BATCH_KIND:
            spec = BatchSpec.model_validate({**fields, "documents": told})
        else:
            spec = Spec.model_validate({**fields, "document": told[0]})
            labels[LABEL_DOCUMENT] = documents[0].id
        body: JsonObject = {
            "apiVersion": API_VERSION,
            "kind": kind,
            "metadata": {"name": making.name, "labels": labels},
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_unset=True),
        }
        # Asked last: a job and a batch may have one name, and what is sent from here on keeps its files.
        # No name is unique across kinds: requests of one file and of several that come at the same time make both.
        if (made := await self.made(making)) is not None:
            return made
        try:
            new = await self._create(making, body)
            return documents if new or not making.keyed else await self._there(kind, making)
        except asyncio.CancelledError as error:
            raise JobUnknownError(making.name) from error

    async def _there(self, kind: str, making: Making) -> Sequence[Document]:
        """Return the documents of what has this name, which this request or another has made."""
        try:
            made = await self._read(kind, making.namespace, making.name)
        except (ApiError, UnreadableJobError) as error:
            raise JobUnknownError(making.name) from error
        if made is None:
            raise JobUnknownError(making.name)
        return _documents(made)

    async def _create(self, making: Making, body: JsonObject) -> bool:
        """Send a job until the API server says that it has it, or that it will not have it.

        Returns:
            whether what was sent last has made it; else an earlier POST has, of this request or another.
        """
        path_of, namespace, name = _PATHS[body["kind"]], making.namespace, making.name
        path = path_of(namespace)
        may_come = False  # what was sent before
        for pause in _PAUSES_SECONDS:
            await asyncio.sleep(pause)
            try:
                self._index.put(await self._kube.request("POST", path, body=body, timeout=_TRY_SECONDS))
            except ApiError as error:
                if error.already_exists:
                    return False
                failed = error
                if error.status in _UNSAID or error.status >= 500:
                    may_come = True
                # A new job cannot be in conflict: it is a quota on jobs, whose count others change at the same time.
                elif error.status != _TOO_MANY and not error.conflict:
                    if not pause and not making.keyed:
                        _refuse(namespace, error)
                    # What is refused for another reason was refused before too.
                    may_come = may_come and _over_quota(error)
                    break
            else:
                return True
        # An earlier POST, or another request's with this key, may have come through: the quota may be used up by this
        # very job.
        path = path_of(namespace, name)
        try:
            self._index.put(await self._kube.request("GET", path, timeout=_TRY_SECONDS))
        except ApiError as error:
            if not error.missing:
                raise JobUnknownError(name) from error
            if may_come:
                raise JobUnknownError(name) from failed
            _refuse(namespace, failed)
        return False


def path_of(job: Retryable) -> str:
    """Return the path of a job, or a batch."""
    path = _PATHS[BATCH_KIND if isinstance(job, IngestionBatch) else KIND]
    return path(job.metadata.namespace, job.metadata.name)


def _documents(job: Retryable) -> Sequence[Document]:
    return job.spec.documents if isinstance(job, IngestionBatch) else [job.spec.document]


def _over_quota(error: ApiError) -> bool:
    return error.status == 403 and "exceeded quota" in error.message


def _refuse(namespace: str, error: ApiError) -> NoReturn:
    """Raise what a refused job means to a client."""
    if error.status in (400, 422) or error.denied:
        raise bad_request(error.message, error="invalid_job") from error
    if _over_quota(error):
        raise quota_used_up("the namespace's quota of ingestion jobs is used up") from error
    if error.status == 404:
        raise unavailable(f"the namespace {namespace} cannot take jobs now") from error
    if error.conflict:
        raise unavailable("the namespace's quota of ingestion jobs keeps changing; try again") from error
    if error.status == _TOO_MANY:
        raise unavailable("the cluster's API server has too much to do; try again") from error
    raise error


class UnreadableJobError(ProblemError):
    """The job is there, and this release cannot read it."""

    def __init__(self, name: str, error: ValidationError) -> None:
        super().__init__(
            status=500,
            error="unreadable_job",
            message=f"this release does not understand the ingestion job {name}, which a newer one may have written:"
            f" upgrade, or look at it with kubectl; {words(error, '')}",
        )


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
