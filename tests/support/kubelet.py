"""A kubelet's part for a control plane without nodes: it ends pods as a test's script says.

The API server, the Job controller and the garbage collector are the real ones; only the containers are not there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.indexset import IndexSet
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, core_path

from support.patience import unless_away


@dataclass(frozen=True, kw_only=True)
class PodRun:
    """A pod as the script sees it.

    Args:
        job: the IngestionJob's name.
        stage: the stage that it runs.
        generation: the attempt's generation.
        segment: its segment, in the stage of segments.
        index: its Job index.
        uid: the pod's.
        command: what its container runs.
        image: its container's image.
        env: the variables of its container that have a plain value.
        file: the attempt's file.
    """

    job: str
    stage: str
    generation: int
    segment: int | None
    index: int
    uid: str
    command: str
    image: str
    env: Mapping[str, str]
    file: str


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a container ends."""

    code: int = 0
    says: Any = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Why a container cannot start."""

    reason: str
    message: str = ""


HANG = None
Script = Callable[[PodRun], Exit | Wait | None]


def fails(said: JsonObject) -> Exit:
    """Return the end of a container that failed with a code of the table."""
    return Exit(code=ERROR_CODES[said["code"]].exit_code or 1, says=said)


@dataclass
class FakeKubelet:
    """Ends every pending pod of a namespace by a script.

    Args:
        client: an administrator's client.
        namespace: whose pods.
        script: what becomes of a pod; HANG leaves it running. It may be replaced while it runs.
        holds: pods that go on running whatever the script says.
        when_told_to_end: how a running container ends when its pod is deleted; None for a pod that goes without a word.
        on_nodes: wait until a pod is bound to a node, as a real kubelet does.
        lost_nodes: nodes that nothing is heard of: their pods stay as they are.
    """

    client: KubeClient
    namespace: str
    script: Script
    holds: Callable[[PodRun], bool] = lambda run: False
    when_told_to_end: Exit | None = None
    on_nodes: bool = False
    lost_nodes: Container[str] = ()
    runs: list[PodRun] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> FakeKubelet:
        self._task = asyncio.create_task(self._loop())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        failed = self._task.done()
        self._task.cancel()
        results = await asyncio.gather(self._task, return_exceptions=True)
        if failed and isinstance(results[0], Exception):
            raise results[0]

    def check(self) -> None:
        """Raise what ended it: nothing would come of waiting for its pods."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def _loop(self) -> None:
        running: dict[str, PodRun] = {}
        while True:
            with unless_away():
                listed = await self.client.request("GET", core_path("pods", self.namespace))
                await asyncio.gather(*(self._look_at(pod, running) for pod in listed["items"]))
            await asyncio.sleep(0.05)

    async def _look_at(self, pod: JsonObject, running: dict[str, PodRun]) -> None:
        with unless_away():
            await self._see_to(pod, running)

    async def _see_to(self, pod: JsonObject, running: dict[str, PodRun]) -> None:
        node = pod["spec"].get("nodeName")
        if node in self.lost_nodes:
            return
        if pod["metadata"].get("deletionTimestamp"):
            if self.when_told_to_end is not None and pod["status"].get("phase") == "Running":
                await self._end(pod, self.when_told_to_end)
            await self._force_delete(pod)
        elif self.on_nodes and node is None:
            return
        elif pod["status"].get("phase") in ("Pending", "Running"):
            await self._run(pod, running)

    async def _force_delete(self, pod: JsonObject) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self._try("DELETE", pod, "", body)

    async def _bind(self, pod: JsonObject) -> None:
        """Have a node for a pod that lacks its ConfigMap: only on a node can it lack anything."""
        if "nodeName" not in pod["spec"]:
            body = {"metadata": {"name": pod["metadata"]["name"]}, "target": {"kind": "Node", "name": "played"}}
            await self._try("POST", pod, "/binding", body)

    async def _try(self, method: str, pod: JsonObject, subresource: str, body: JsonObject) -> None:
        """Send a request about a pod that may be gone or changed by now."""
        path = core_path("pods", self.namespace, pod["metadata"]["name"]) + subresource
        try:
            await self.client.request(method, path, body=body)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def _run(self, pod: JsonObject, running: dict[str, PodRun]) -> None:
        run = running.get(pod["metadata"]["uid"])
        if run is None:
            try:
                run = await self._read(pod)
            except ApiError as error:
                if not error.not_found:
                    raise
                await self._bind(pod)
                return  # without its ConfigMap a pod does not start
            running[run.uid] = run
            self.runs.append(run)
        end = HANG if self.holds(run) else self.script(run)
        if end is HANG:
            if pod["status"].get("phase") == "Pending":
                ready = {"type": "Ready", "status": "True"}
                await self._patch(pod, {"phase": "Running", "conditions": [ready], "containerStatuses": []})
        elif isinstance(end, Wait):
            state = {"waiting": {"reason": end.reason, "message": end.message}}
            if [item["state"] for item in pod["status"].get("containerStatuses", [])] != [state]:
                await self._patch(pod, {"containerStatuses": [_container(state)]})
        else:
            await self._end(pod, end)

    async def _end(self, pod: JsonObject, end: Exit) -> None:
        says = end.says if isinstance(end.says, str) else json.dumps(end.says or {})
        state = {"terminated": {"exitCode": end.code, "message": says, "reason": end.reason or "Completed"}}
        phase = "Failed" if end.code else "Succeeded"
        await self._patch(pod, {"phase": phase, "containerStatuses": [_container(state)]})

    async def _patch(self, pod: JsonObject, status: JsonObject) -> None:
        path = core_path("pods", self.namespace, pod["metadata"]["name"]) + "/status"
        try:
            await self.client.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)
        except ApiError as error:
            if not error.not_found:
                raise

    async def _read(self, pod: JsonObject) -> PodRun:
        labels = pod["metadata"]["labels"]
        stage, index = labels[names.LABEL_STAGE], int(labels[names.LABEL_COMPLETION_INDEX])
        volume = next(item for item in pod["spec"]["volumes"] if "configMap" in item)
        found = await self.client.request("GET", core_path("configmaps", self.namespace, volume["configMap"]["name"]))
        segment = None
        if stage == names.Stage.SEGMENTS:
            segment = IndexSet.parse(json.loads(found["data"][names.ATTEMPT_KEY])["segments"]).member(index)
        generation = int(labels[names.LABEL_GENERATION])
        container = pod["spec"]["containers"][0]
        return PodRun(
            job=pod["metadata"]["annotations"][names.ANNOTATION_JOB_NAME],
            stage=stage,
            generation=generation,
            segment=segment,
            index=index,
            uid=pod["metadata"]["uid"],
            command=container["args"][0],
            image=container["image"],
            env={item["name"]: item["value"] for item in container["env"] if "value" in item},
            file=found["data"][names.ATTEMPT_KEY],
        )


def _container(state: JsonObject) -> JsonObject:
    """Return a container's status."""
    return {
        "name": names.WORKER_CONTAINER,
        "state": state,
        "ready": False,
        "restartCount": 0,
        "image": "worker",
        "imageID": "",
    }
