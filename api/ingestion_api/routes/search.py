"""Search over the active versions of knowledge bases."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field, WithJsonSchema
from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from ingestion_api.auth import BEARER, Caller, KeyedRoute
from ingestion_api.problems import bad_request, unsupported_type
from ingestion_api.routes.jobs import TAG
from ingestion_api.routes.responses import BAD_REQUEST, BODY_REFUSED, BUSY, UNAUTHORIZED, UNAVAILABLE
from ingestion_api.services import services_of

if TYPE_CHECKING:
    from ingestion_worker.attempt import EmbeddingSpec

MAX_KNOWLEDGE_BASES: Final = 16
MAX_QUERY: Final = 8192
_JSON: Final = re.compile(r"application/(json|[^/]+\+json)")
_UUIDS: Final = {"type": "object", "additionalProperties": {"type": "string", "format": "uuid"}}
router = APIRouter(prefix="/v1/knowledge-base", tags=[TAG], route_class=KeyedRoute)


class SearchRequest(BaseModel):
    """A question to one or more knowledge bases."""

    query: str = Field(min_length=1, max_length=MAX_QUERY)
    kb_ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_KNOWLEDGE_BASES)]
    rerank: bool = Field(False, description="Not to be had here: true is answered with 400.")
    limit: int = Field(30, ge=1, le=100)
    prefer_draft: bool = Field(False, description="Only active versions are searched: true is answered with 400.")
    # Not looked into: any is refused, and thousands of wrong ids would take seconds to report.
    version_overrides: Annotated[dict[str, Any], WithJsonSchema(_UUIDS)] | None = Field(
        None, description="Only active versions are searched: any is answered with 400."
    )
    alpha: float = Field(0.5, ge=0.1, le=1.0, description="Accepted; ranking is by vectors alone.")


class TextPosition(BaseModel):
    """Where a chunk stands in its page, or in its document where there are no pages."""

    type: Literal["text"] = "text"
    start_char: int = Field(ge=0)
    end_char: int = Field(ge=0)


class SearchResult(BaseModel):
    """One chunk."""

    chunk_id: str
    kb_id: UUID
    document_id: UUID
    version_id: str = ""
    document_title: str
    source_type: str
    content: str
    score: float
    chunk_index: int
    position: TextPosition | None = None
    page: int | None = Field(None, description="The page that the chunk begins on, counted from 1.")


class SearchResultGroup(BaseModel):
    """Results of one embedding: their scores compare with each other alone."""

    embedding_model: str
    embedding_dimensions: int
    kb_ids: list[UUID]
    results: list[SearchResult]


class SearchResponse(BaseModel):
    """The best chunks, best first."""

    results: list[SearchResult]
    total_results: int
    grouped_results: list[SearchResultGroup] | None = Field(
        None, description="The results by their embeddings, where there are several."
    )
    ranking_mode: Literal["global_score", "reranked", "grouped_unranked"]


class TakenResponse(Response):
    """An answer whose sending ends when its client has taken all of it: until then it is in memory."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""

        async def until_taken(message: Message) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                message = {"type": "http.response.body"}
            await send(message)  # waits for what was sent before

        await super().__call__(scope, receive, until_taken)


async def _json_alone(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON.fullmatch(kind):
        raise unsupported_type("application/json")


async def _until_sent() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


UntilSent = Annotated[AsyncExitStack, Depends(_until_sent)]
"""What is entered here is left once the answer is sent."""


@router.post(
    "/search",
    operation_id="searchKnowledgeBase",
    summary="Search knowledge bases",
    description="Chunks of active versions, nearest to the query by vector. A version that is being made is not seen.",
    response_model=SearchResponse,
    dependencies=[Depends(_json_alone), BEARER],
    responses={**BAD_REQUEST, **UNAUTHORIZED, **BODY_REFUSED, **BUSY, **UNAVAILABLE},
)
async def search_knowledge_base(
    request: Request, body: SearchRequest, caller: Caller, until_sent: UntilSent
) -> Response:
    """Answer a search, and hold its slot until the answer is taken.

    Raises:
        ProblemError: 400 for what is not supported, else as `Searches.best`.
    """
    for name, given in (
        ("rerank", body.rerank),
        ("prefer_draft", body.prefer_draft),
        ("version_overrides", body.version_overrides),
    ):
        if given:
            raise bad_request(f"{name}: not supported here; leave it out")
    found = await until_sent.enter_async_context(
        services_of(request).searches.best(
            namespace=caller.namespace,
            knowledge_bases=dict.fromkeys(map(str, body.kb_ids)),
            query=body.query,
            limit=body.limit,
        )
    )
    results = [
        SearchResult(
            chunk_id=hit.chunk_id,
            kb_id=UUID(knowledge_base),
            document_id=UUID(hit.document_id),
            version_id=hit.version_id,
            document_title=hit.title,
            source_type="document",
            content=hit.content,
            score=hit.score,
            chunk_index=hit.chunk_index,
            position=TextPosition(start_char=hit.start, end_char=hit.end),
            page=hit.page,
        )
        for knowledge_base, hit in found
    ]
    groups = _grouped(results, [hit.embedding for _, hit in found])
    answer = SearchResponse(
        results=results,
        total_results=len(results),
        grouped_results=groups,
        ranking_mode="global_score" if groups is None else "grouped_unranked",
    )
    return TakenResponse(to_json(answer), media_type="application/json")


def _grouped(results: list[SearchResult], embeddings: list[EmbeddingSpec]) -> list[SearchResultGroup] | None:
    """Return results by their embeddings, those of the best result first; None where there are not several."""
    specs = dict.fromkeys(embeddings)
    if len(specs) < 2:
        return None
    groups: list[SearchResultGroup] = []
    for spec in specs:
        own = [result for result, embedding in zip(results, embeddings, strict=True) if embedding == spec]
        groups.append(
            SearchResultGroup(
                embedding_model=spec.model,
                embedding_dimensions=spec.dimensions,
                kb_ids=list(dict.fromkeys(result.kb_id for result in own)),
                results=own,
            )
        )
    return groups
