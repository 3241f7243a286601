"""Does what a plan asks for: a method for each action, and what it means when the API server refuses one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.follow import PAGE
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import ApiError

from ingestion_operator.actions import (
    Action,
    AnswerAnnotation,
    CreateChild,
    DeleteChild,
    DeleteConfigMap,
    DeleteIngestionJob,
    PatchChild,
    RemovePods,
    RestoreConfigMap,
)
from ingestion_operator.children import ChildJob, is_child_name, read_child
from ingestion_operator.cluster import KubeCluster
from ingestion_operator.custom_resources import TRIES_OF_WEBHOOKS, raise_conflict
from ingestion_operator.memory import Memory
from ingestion_operator.pace import Kept, Removal
from ingestion_operator.plan import Snapshot
from ingestion_operator.questions import rejection_said

# For so long no Job is made where the cluster changes each so that it is of no use: its pods start for nothing. Nor is
# one changed where the cluster has not kept that.
_IN_VAIN_SECONDS: Final = 120.0

log = logging.getLogger(__name__)


class Acting:
    """Acts on the cluster, one action after the other.

    Each method takes what is known and returns what is known after it. A refusal is no error: it is part of what is
    known then, for the next plan, or, where nothing depends on the action, a line in the log.

    Args:
        cluster: the API server.
        memory: what is remembered of each job.
        now: the wall clock, for Events.
    """

    def __init__(self, *, cluster: KubeCluster, memory: Memory, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._jobs = cluster.ingestion_jobs
        self._memory = memory
        self._now = now

    async def apply(self, action: Action, raw: JsonObject, snapshot: Snapshot) -> tuple[JsonObject, Snapshot]:
        """Take one action.

        Args:
            action: what is asked for.
            raw: the IngestionJob.
            snapshot: what exists.

        Returns:
            The IngestionJob, and what exists, as it is known after it.

        Raises:
            ApiError: when the API server cannot be worked with.
            ConflictError: when something changed meanwhile.
        """
        match action:
            case CreateChild():
                return raw, await self._create_child(action, snapshot)
            case RestoreConfigMap():
                return raw, await self._restore_config_map(action, snapshot)
            case DeleteChild():
                return raw, await self._delete_child(action, snapshot)
            case DeleteConfigMap():
                await self._delete_config_map(action.name, snapshot)
                return raw, snapshot
            case PatchChild():
                return raw, await self._patch_child(action, snapshot)
            case RemovePods():
                return raw, await self._remove_pods(action, snapshot)
            case AnswerAnnotation():
                return await self._answer_annotation(action, raw, snapshot)
            case DeleteIngestionJob():
                return raw, await self._delete_ingestion_job(action, snapshot)

    # ── ConfigMap and Job ─────────────────────────────────────────────────────────────────────────────────────────

    async def _create_child(self, action: CreateChild, snapshot: Snapshot) -> Snapshot:
        """Create ConfigMap and Job; what exists already is ours if owner and digest match, which the plan checks.

        One that has lost its digest as it was created is not the plan's either, which takes it for another release's
        and deletes it. That is not to begin anew at once.
        """
        metadata = action.body["metadata"]
        namespace, name = snapshot.job.metadata.namespace, metadata["name"]
        pace, now = self._memory.pace(snapshot.job.key), self._memory.monotonic()
        if pace.made_in_vain is not None and now - pace.made_in_vain < _IN_VAIN_SECONDS:
            return replace(snapshot, rejection=_changed(action.body))
        rejection = None
        try:
            await self._create_config_map(namespace, action.config_map)
            try:
                created = await self._cluster.create_child(body=action.body)
                if read_child(created).map_digest != metadata["annotations"][names.ANNOTATION_MAP_DIGEST]:
                    pace.made_in_vain, rejection = now, _changed(action.body)
            except ApiError as error:
                if not error.already_exists:
                    raise
                created = await self._cluster.get_child(namespace=namespace, name=name)
        except ApiError as error:
            return self._rejected(snapshot, name, error)
        if rejection_said(snapshot.job) is None:  # else only a diagnosis shows that it is over
            pace.diagnosed = now  # that it has no pods yet is no wonder
        return replace(snapshot, children=(*snapshot.children, read_child(created)), rejection=rejection)

    async def _restore_config_map(self, action: RestoreConfigMap, snapshot: Snapshot) -> Snapshot:
        try:
            await self._create_config_map(snapshot.job.metadata.namespace, action.config_map)
        except ApiError as error:
            return self._rejected(snapshot, action.config_map["metadata"]["name"], error)
        return replace(snapshot, config_map_gone=False)

    async def _create_config_map(self, namespace: str, wanted: JsonObject) -> None:
        try:
            await self._cluster.create_config_map(body=wanted)
        except ApiError as error:
            if not error.already_exists:
                raise
            await self._replace_config_map(namespace, wanted)

    async def _replace_config_map(self, namespace: str, wanted: JsonObject) -> None:
        """See to it that the ConfigMap that is there is the wanted one."""
        name = wanted["metadata"]["name"]
        found = await self._cluster.get_config_map(namespace=namespace, name=name)
        if found.get("data") == wanted["data"]:
            return
        if found["metadata"].get("ownerReferences") != wanted["metadata"]["ownerReferences"]:
            raise ApiError(
                status=403,
                reason="NameConflict",
                message=f"the ConfigMap {name} exists with other content: delete it",
            )
        # Another release wrote it, for a Job that is not there. Should that still come, its pods refuse the new file.
        await self._cluster.delete_config_map(namespace=namespace, name=name, uid=found["metadata"]["uid"])
        await self._cluster.create_config_map(body=wanted)

    async def _patch_child(self, action: PatchChild, snapshot: Snapshot) -> Snapshot:
        namespace, name = snapshot.job.metadata.namespace, action.name
        pace, now = self._memory.pace(snapshot.job.key), self._memory.monotonic()
        vain = {wish: at for wish, at in pace.patched_in_vain.items() if now - at < _IN_VAIN_SECONDS}
        wishes = {(action.uid, field, value) for field, value in _asked(action).items()}
        pace.patched_in_vain = vain
        if wishes & vain.keys():
            return replace(snapshot, rejection=_not_kept(action))
        try:
            if action.clear_start_of is not None:
                await self._cluster.clear_start_time(
                    namespace=namespace, name=name, resource_version=action.clear_start_of
                )
            answer = await self._cluster.patch_child(
                namespace=namespace, name=name, uid=action.uid, spec=action.spec, annotations=action.annotations
            )
        except ApiError as error:
            raise_conflict(error)
            return self._rejected(snapshot, name, error)
        # As it is now, or the next round would do the same again.
        patched = read_child(answer)
        others = (patched if child.uid == patched.uid else child for child in snapshot.children)
        snapshot = replace(snapshot, children=tuple(others))
        kept = {f"spec.{field}": value for field, value in answer["spec"].items()}
        kept |= answer["metadata"].get("annotations", {})
        if all(kept.get(field) == value for field, value in _asked(action).items()):
            return snapshot
        vain |= dict.fromkeys(wishes, now)
        return replace(snapshot, rejection=_not_kept(action))

    async def _delete_child(self, action: DeleteChild, snapshot: Snapshot) -> Snapshot:
        namespace = snapshot.job.metadata.namespace
        # The ConfigMap first: while the Job is there, a crash between the two is made good.
        await self._delete_config_map(action.name, snapshot)
        try:
            await self._cluster.delete_child(namespace=namespace, name=action.name, uid=action.uid)
        except ApiError as error:
            if any(not child.finished for child in snapshot.children if child.uid == action.uid):
                return self._rejected(snapshot, action.name, error)
            self._tolerate(snapshot.job.key, "a finished Job stays", error)
            self._memory.littered.add(snapshot.job.key)
            return replace(snapshot, children=tuple(child for child in snapshot.children if child.uid != action.uid))
        return replace(snapshot, children=await self._children_after_deletion(action, snapshot), rejection=None)

    async def _children_after_deletion(self, action: DeleteChild, snapshot: Snapshot) -> tuple[ChildJob, ...]:
        """Return the Jobs but for one that was deleted; one that could still run is seen to be gone."""
        others = tuple(child for child in snapshot.children if child.uid != action.uid)
        if all(child.finished for child in snapshot.children if child.uid == action.uid):
            return others
        found = await self._cluster.find_child(namespace=snapshot.job.metadata.namespace, name=action.name)
        return others if found is None or found["metadata"]["uid"] != action.uid else (*others, read_child(found))

    async def _delete_config_map(self, name: str, snapshot: Snapshot) -> None:
        if not is_child_name(name, job=snapshot.job):
            return  # whoever copies a Job copies its owner too: the ConfigMap of that name is a stranger's
        try:
            await self._cluster.delete_config_map(namespace=snapshot.job.metadata.namespace, name=name)
        except ApiError as error:
            self._tolerate(snapshot.job.key, "a ConfigMap stays", error)

    # ── pods, and the IngestionJob itself ─────────────────────────────────────────────────────────────────────────

    async def _remove_pods(self, action: RemovePods, snapshot: Snapshot) -> Snapshot:
        """Remove a page of pods, behind the one of the look before: those that stay do not keep it from the others."""
        job, uid = snapshot.job, action.child_uid
        removals = self._memory.pace(job.key).removals
        removal, following = removals.get(uid, Removal()), ""
        try:
            following = await self._cluster.remove_pods(
                namespace=job.metadata.namespace,
                child_uid=uid,
                keep=action.keep,
                following=removal.following,
                parts=removal.parts,
            )
        except ApiError as error:
            if error.expired and not removal.anew:
                removals[uid] = Removal(anew=True, parts=removal.parts)
                return snapshot
            if error.too_large and removal.parts < PAGE:  # it is carried out all the same
                removals[uid] = removal._replace(parts=removal.parts * 4)
                return snapshot
            self._tolerate(job.key, "finished pods stay", error)
        if following:
            removals[uid] = removal._replace(following=following, anew=removal.anew and not removal.following)
            return snapshot
        removals.pop(uid, None)
        return replace(snapshot, tidied=snapshot.tidied | {uid})

    async def _answer_annotation(
        self, action: AnswerAnnotation, raw: JsonObject, snapshot: Snapshot
    ) -> tuple[JsonObject, Snapshot]:
        try:
            raw = await self._jobs.answer(action, raw)
        except ApiError as error:
            self._tolerate(snapshot.job.key, "an annotation is not answered", error)
            return raw, replace(snapshot, answer_refused=True)
        raw, job = kept = Kept.of(raw, IngestionJob.model_validate(raw))
        self._memory.remember(snapshot.job.key, kept)
        self._cluster.events.tell(raw, action.told, now=self._now())
        # A policy may have taken the mark off that the patch has made.
        return raw, replace(snapshot, job=job, answered=action.token)

    async def _delete_ingestion_job(self, action: DeleteIngestionJob, snapshot: Snapshot) -> Snapshot:
        namespace, name = snapshot.job.metadata.namespace, snapshot.job.metadata.name
        try:
            await self._jobs.delete(namespace=namespace, name=name, uid=action.uid)
        except ApiError as error:
            self._tolerate(snapshot.job.key, "a completed job stays", error)
            return replace(snapshot, rejection=f"{name}: {error.message}")
        return snapshot

    # ── what the API server refuses ───────────────────────────────────────────────────────────────────────────────

    def _rejected(self, snapshot: Snapshot, name: str, error: ApiError) -> Snapshot:
        """Return what is known once the API server has refused something; raises any other error."""
        self._expect_refusal(snapshot.job.key, error)
        return replace(snapshot, rejection=f"{name}: {error.message}")

    def _tolerate(self, key: str, what: str, error: ApiError) -> None:
        """Go on without what the API server has refused; raises any other error."""
        self._expect_refusal(key, error)
        log.warning("%s: %s", what, error, extra={"job": key})

    def _expect_refusal(self, key: str, error: ApiError) -> None:
        """Raise the error unless it can be lived with: a refusal, or a webhook that fails for long.

        That pages take too long is one too: to begin anew once more would be no better.
        """
        if error.refused or error.expired:
            return
        if error.webhook_failed:
            self._memory.webhook_failures[key] += 1
            if self._memory.webhook_failures[key] >= TRIES_OF_WEBHOOKS:
                return
        raise error


def _asked(action: PatchChild) -> JsonObject:
    """Return what fields, and annotations, a Job is to have; None for what it is not to have."""
    return {**{f"spec.{field}": value for field, value in action.spec.items()}, **action.annotations}


def _not_kept(action: PatchChild) -> str:
    """Return what there is to say of a change of a Job that the cluster has made another one."""
    asked = ", ".join(f"{field}: {value}" for field, value in _asked(action).items())
    return f"{action.name}: the cluster does not keep {asked}"


def _changed(job: JsonObject) -> str:
    """Return what there is to say of a Job that has lost its digest."""
    allowed = f"a policy may add some, and must keep {names.ANNOTATION_MAP_DIGEST}"
    return f"{job['metadata']['name']}: the cluster changes the Job's annotations: {allowed}"
