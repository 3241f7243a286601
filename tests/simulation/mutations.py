"""Do the fast tests notice a broken operator or worker? Each mutation breaks one safeguard in a copy; one that survives
is a failure.

`python -m simulation.mutations` (with `tests/` on the path) runs all of them and prints a table; names as arguments
run only those; `--write` puts the table into docs/reliability.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reliability.md"
# The tests that have to notice, the quick ones first, by what is broken.
SUITES: Final = {
    "operator": (
        "tests/simulation/test_safeguards.py",
        "tests/simulation/test_regressions.py",
        "tests/simulation/test_looks.py",
        "tests/simulation/test_left_pods.py",
        "tests/simulation/test_unrecorded_jobs.py",
        "tests/simulation/test_wishes.py",
        "tests/simulation/test_queues.py",
        "tests/simulation/test_refusals.py",
        "tests/simulation/test_crowds.py",
        "tests/simulation/test_retries.py",
        "tests/simulation/test_batches.py",
        "tests/simulation/test_batch_looks.py",
        "tests/simulation/test_events.py",
        "tests/pure",
        "tests/simulation/test_every_write.py",
        "tests/simulation/test_convergence.py",
    ),
    "worker": (
        "tests/worker/test_history.py",
        "tests/worker/test_stages.py",
        "tests/worker/test_store.py",
        "tests/worker/test_main.py",
    ),
}
# Of the processor: a mutant that never ends is caught, one that waits for a busy machine is not.
LIMIT_SECONDS: Final = 900
PATIENCE_SECONDS: Final = 7200
HEADING: Final = "## Mutations: what catches a broken safeguard"
INTRODUCTION: Final = """\
Each row breaks one safeguard in a copy of the code and runs tests on it up to the first failure: for the operator the
simulation and the pure tests, for the worker its own, each as in `make test`. A mutation that nobody notices makes the
run fail.

```console
$ make mutations
$ make mutations ARGS='"no tombstone"'
$ make mutations ARGS=--write
```

The first tries all of them (`ARGS="--workers 4"` on a larger machine), the second those whose names contain a text, and
the third puts the table here.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One safeguard, taken away.

    Args:
        name: in words.
        file: in the package that is broken.
        changes: pairs of a text that stands there exactly once, and what replaces it.
        harmless: why nothing can notice it; empty when something must.
        part: of the product: `operator` or `worker`.
    """

    name: str
    file: str
    changes: tuple[tuple[str, str], ...]
    harmless: str = ""
    part: str = "operator"


MUTATIONS: Final = (
    Mutation(
        name="actions before the status write",
        file="reconcile.py",
        changes=(
            (
                """            (raw, job), wait = await self._write(key, Kept(raw, snapshot.job), decided)
""",
                """            acted = snapshot
            for action in decided.actions:
                _, acted = await self._acting.apply(action, raw, acted)
            snapshot = replace(snapshot, children=acted.children, tidied=acted.tidied)
            (raw, job), wait = await self._write(key, Kept(raw, snapshot.job), decided)
""",
            ),
        ),
    ),
    Mutation(
        name="creation without a recorded intent",
        file="plan.py",
        changes=(
            (
                """    draft.set(stage=stage)
    draft.set_attempt(
        jobs=[*attempt.jobs, record], segments=""",
                """    draft.set(stage=stage)
    draft.set_attempt(
        jobs=[*attempt.jobs, record] if _any_child(draft, record) else attempt.jobs, segments=""",
            ),
            (
                """def _dispatch_of(""",
                """def _any_child(draft: _Draft, record: AttemptJob) -> bool:
    return any(child.name == record.name for child in draft.snapshot.children)


def _dispatch_of(""",
            ),
        ),
    ),
    Mutation(
        name="the Job before its ConfigMap",
        file="acting.py",
        changes=(
            (
                """            await self._create_config_map(namespace, action.config_map)
            try:
                created""",
                """            try:
                created""",
            ),
            (
                """get_child(namespace=namespace, name=name)
        except ApiError""",
                """get_child(namespace=namespace, name=name)
            await self._create_config_map(namespace, action.config_map)
        except ApiError""",
            ),
        ),
    ),
    Mutation(
        name="the Job removed before its ConfigMap",
        file="acting.py",
        changes=(
            (
                """        await self._delete_config_map(action.name, snapshot)
        try:
            await self._cluster.delete_child(namespace=namespace, name=action.name, uid=action.uid)
""",
                """        try:
            await self._cluster.delete_child(namespace=namespace, name=action.name, uid=action.uid)
            await self._delete_config_map(action.name, snapshot)
""",
            ),
        ),
    ),
    Mutation(
        name="what was published as its time ran out is a failure",
        file="plan.py",
        changes=(("    return child.complete or 0 in child.completed\n", "    return child.complete\n"),),
    ),
    Mutation(
        name="a segment that failed is taken for one that was stopped",
        file="plan.py",
        changes=(("said.get(index, unread)", "said.get(index, otherwise)"),),
    ),
    Mutation(
        name="a Job that is Complete has run every segment",
        file="plan.py",
        changes=(
            (
                "    done = dispatched.members(child.completed)\n",
                "    done = dispatched if child.complete else dispatched.members(child.completed)\n",
            ),
        ),
    ),
    Mutation(
        name="a webhook that stays away is waited for in silence",
        file="acting.py",
        changes=(
            ("            if self._memory.webhook_failures[key] >= TRIES_OF_WEBHOOKS:\n                return\n", ""),
        ),
    ),
    Mutation(
        name="a job that goes on in a full cluster is Stalled",
        file="questions.py",
        changes=(("    return reason == Reason.POD_UNSCHEDULABLE and child.ready > 0\n", "    return False\n"),),
    ),
    Mutation(
        name="pods that may not be deleted keep the attempt open",
        file="acting.py",
        changes=(
            (
                """            self._tolerate(job.key, "finished pods stay", error)
""",
                """            raise
""",
            ),
        ),
    ),
    Mutation(
        name="a completed job that may not be deleted is an error",
        file="acting.py",
        changes=(
            (
                '            self._tolerate(snapshot.job.key, "a completed job stays", error)\n',
                "            raise\n",
            ),
        ),
    ),
    Mutation(
        name="Jobs that may not be deleted keep the attempt open",
        file="acting.py",
        changes=(
            ("if any(not child.finished for child in snapshot.children if child.uid == action.uid):", "if True:"),
        ),
    ),
    Mutation(
        name="Jobs that could not be deleted are forgotten",
        file="acting.py",
        changes=(("            self._memory.littered.add(snapshot.job.key)\n", ""),),
    ),
    Mutation(
        name="a finished Job does not give way to the next",
        file="plan.py",
        changes=(
            (
                """        if child is not None and child.finished and not child.deleting:
            _still_rejected(draft)
""",
                """        if False:
            _still_rejected(draft)
""",
            ),
        ),
    ),
    Mutation(
        name="an answer that is refused is tried again at once",
        file="plan.py",
        changes=(("    elif token and draft.snapshot.answer_refused:\n", "    elif False:\n"),),
    ),
    Mutation(
        name="an answer is known by its mark alone",
        file="retry_requests.py",
        changes=(("answered or job.metadata.annotations.get(", "job.metadata.annotations.get("),),
    ),
    Mutation(
        name="the ConfigMap of a lost Job stays",
        file="plan.py",
        changes=(("    draft.actions.append(DeleteConfigMap(name=record.name))\n    lost", "    lost"),),
    ),
    Mutation(
        name="the ConfigMap of a copied Job's name is taken for its own",
        file="acting.py",
        changes=(("        if not is_child_name(name, job=snapshot.job):\n", "        if False:\n"),),
    ),
    Mutation(
        name="pods removed before the harvest is durable",
        file="reconcile.py",
        changes=(
            (
                """            (raw, job), wait = await self._write(key, Kept(raw, snapshot.job), decided)
""",
                """            for early in decided.actions:
                if isinstance(early, RemovePods):
                    await self._acting.apply(early, raw, snapshot)
            (raw, job), wait = await self._write(key, Kept(raw, snapshot.job), decided)
""",
            ),
        ),
    ),
    Mutation(
        name="no resourceVersion on the status write",
        file="custom_resources.py",
        changes=(
            (
                """body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}""",
                """body = {"status": patch}""",
            ),
        ),
    ),
    Mutation(
        name="no uid precondition on deletes",
        file="custom_resources.py",
        changes=(("    if uid is not None:\n", """    if uid == "":\n"""),),
    ),
    Mutation(
        name="no uid in the patch of a Job",
        file="cluster.py",
        changes=(
            (
                """body = {"metadata": {"uid": uid, "annotations": annotations}, "spec": spec}""",
                """body = {"spec": spec}""",
            ),
        ),
    ),
    Mutation(
        name="deletes without a propagation policy",
        file="custom_resources.py",
        changes=(("""    body: JsonObject = {"propagationPolicy": "Background"}\n""", "    body: JsonObject = {}\n"),),
    ),
    Mutation(
        name="the Job's UID is not recorded",
        file="plan.py",
        changes=(("""        draft.set_record(uid=child.uid)\n""", """        pass\n"""),),
    ),
    Mutation(
        name="AlreadyExists taken for ours whoever owns it",
        file="plan.py",
        changes=(
            (
                "if child is not None and owned and child.map_digest == record.map_digest:",
                "if child is not None and child.name == record.name:",
            ),
        ),
    ),
    Mutation(
        name="an attempt whose name is taken cannot be cancelled",
        file="plan.py",
        changes=(
            (
                "    elif draft.cancelled:\n        draft.set_record(completion_time=draft.now)\n",
                "    elif draft.cancelled and child is None:\n        draft.set_record(completion_time=draft.now)\n",
            ),
        ),
    ),
    Mutation(
        name="only the last stage's pods are removed",
        file="plan.py",
        changes=(
            (
                "    made = last_made(draft.attempt.jobs)\n",
                "    made = draft.attempt.jobs[-1] if draft.attempt.jobs else None\n",
            ),
        ),
    ),
    Mutation(
        name="pods of a job at rest are left for good",
        file="questions.py",
        changes=(("        and status.pods_to_remove is None\n", ""),),
    ),
    Mutation(
        name="kept pods are taken from a record that does not name them",
        file="questions.py",
        changes=(("    if job.status.pods_to_remove is not None:\n        return None\n", ""),),
    ),
    Mutation(
        name="a retry waits until all pods are removed",
        file="acting.py",
        changes=(
            (
                "parts=removal.parts,\n            )\n",
                """parts=removal.parts,
            )
            while following:
                following = await self._cluster.remove_pods(
                    namespace=job.metadata.namespace, child_uid=uid, keep=action.keep, following=following
                )
""",
            ),
        ),
    ),
    Mutation(
        name="each page of pods begins at the first",
        file="acting.py",
        changes=(("following=removal.following,\n", 'following="",\n'),),
    ),
    Mutation(
        name="a page of pods whose answer is too large is asked for again as it is",
        file="acting.py",
        changes=(("parts=removal.parts * 4", "parts=removal.parts"),),
    ),
    Mutation(
        name="pages of pods begin anew for ever",
        file="acting.py",
        changes=(("if error.expired and not removal.anew:", "if error.expired:"),),
    ),
    Mutation(
        name="who takes over removes pods before ends are recorded",
        file="reconcile.py",
        changes=(("            if self._is_due(key) or not _only", "            if decided.actions or not _only"),),
    ),
    Mutation(
        name="pods of the attempt before are removed as a retry begins",
        file="plan.py",
        changes=(("    if draft.actions:\n        return\n    child", "    child"),),
    ),
    Mutation(
        name="a retry by annotation waits for pods that are removed",
        file="plan.py",
        changes=(
            (
                "    _answer_annotation(draft)  # behind",
                "    _remove_left_pods(draft)\n    _answer_annotation(draft)  # behind",
            ),
        ),
    ),
    Mutation(
        name="a retry that is held back keeps the pods before it",
        file="plan.py",
        changes=(
            (
                "    if uid is None or draft.snapshot",
                "    if uid is None or draft.status.phase not in names.TERMINAL_PHASES or draft.snapshot",
            ),
        ),
    ),
    Mutation(
        name="a stage's Job is deleted with the first page of its pods",
        file="plan.py",
        changes=(
            (
                "        else:\n            _delete(draft, child)\n\n\ndef _delete",
                "        _delete(draft, child)\n\n\ndef _delete",
            ),
        ),
    ),
    Mutation(
        name="an attempt waits for the pods of its stages",
        file="plan.py",
        changes=(("if current(draft.job) is not None else []", "if draft.status.attempts else []"),),
    ),
    Mutation(
        name="a ConfigMap of other content taken for ours",
        file="acting.py",
        changes=(("""        if found.get("data") == wanted["data"]:""", """        if found:"""),),
    ),
    Mutation(
        name="a ConfigMap of another release is left to people",
        file="acting.py",
        changes=(
            (
                """        if found["metadata"].get("ownerReferences") != wanted["metadata"]["ownerReferences"]:""",
                """        if found:""",
            ),
        ),
    ),
    Mutation(
        name="a Job of another release is left to people",
        file="plan.py",
        changes=(
            (
                """    elif owned:\n""",
                """    elif owned and child.owner_uid is None:\n""",
            ),
        ),
    ),
    Mutation(
        name="a Job that the cluster changes is made again at once",
        file="acting.py",
        changes=(("pace.made_in_vain, rejection = now,", "_, rejection = now,"),),
    ),
    Mutation(
        name="FailureTarget taken for the end",
        file="children.py",
        changes=(
            (
                """    failed = conditions.get("Failed")\n""",
                """    failed = conditions.get("Failed") or conditions.get("FailureTarget")\n""",
            ),
        ),
    ),
    Mutation(
        name="failedIndexes as the retry set",
        file="plan.py",
        changes=(
            (
                """    unfinished = IndexSet.span(segments.total) - completed
    codes =""",
                """    unfinished = dispatched_failures(draft) - completed
    codes =""",
            ),
            (
                """def _unfinished(segments: Segments) -> IndexSet:
    return IndexSet.span(segments.total) - IndexSet.parse(segments.completed)
""",
                """def _unfinished(segments: Segments) -> IndexSet:
    if segments.failed:
        return IndexSet.parse(segments.failed)
    return IndexSet.span(segments.total) - IndexSet.parse(segments.completed)


def dispatched_failures(draft: _Draft) -> IndexSet:
    child = _child_of(draft, draft.status.attempts[-1].jobs[-1])
    return _dispatched(draft).members(child.failed) if child is not None else _dispatched(draft)
""",
            ),
        ),
    ),
    Mutation(
        name="completed segments dispatched again",
        file="plan.py",
        changes=(
            (
                "    unfinished = _unfinished(draft.segments)\n",
                "    unfinished = _unfinished(draft.segments) if len(draft.status.attempts) == 1 "
                "else IndexSet.span(draft.segments.total)\n",
            ),
        ),
    ),
    Mutation(
        name="an empty choice of segments is one of none",
        file="plan.py",
        changes=(("    if not job.spec.retry_segments:\n", "    if job.spec.retry_segments is None:\n"),),
    ),
    Mutation(
        name="no tombstone",
        file="plan.py",
        changes=(
            (
                """    if newest is not None and child.uid == newest.uid:  # a tombstone, once it has ended
        return draft.attempt.completion_time is not None and not child.finished
""",
                "",
            ),
        ),
    ),
    Mutation(
        name="a Job may outlive its attempt",
        file="plan.py",
        changes=(("draft.attempt.completion_time is not None and not child.finished", "False"),),
    ),
    Mutation(
        name="no `test` of the resourceVersion in the annotation's patch",
        file="custom_resources.py",
        changes=(("operations = [unchanged, *action.operations]", "operations = [*action.operations]"),),
    ),
    Mutation(
        name="the annotation is not marked handled in the patch that raises",
        file="retry_requests.py",
        changes=(("""        mark,\n""", ""),),
    ),
    Mutation(
        name="a conflict is not looked at again",
        file="main.py",
        changes=(
            (
                "            delay = queue.retry(key)\n            log.info(",
                "            delay = 0.0\n            log.info(",
            ),
        ),
    ),
    Mutation(
        name="no resync",
        file="main.py",
        changes=(("            await asyncio.sleep(pause)\n", "            await asyncio.sleep(1e9)\n"),),
    ),
    Mutation(
        name="a replica that takes over forgets the Jobs that it saw run",
        file="intake.py",
        changes=(("        for key in self._unfinished.values():\n", "        for key in ():\n"),),
    ),
    Mutation(
        name="the status is written each time",
        file="reconcile.py",
        changes=(
            ("        if decided.status == job.status:\n            return kept, None\n", ""),
            (
                """        if not patch:\n            return kept, None\n""",
                """        if not patch:\n            patch = {"progressPercent": job.status.progress_percent ^ 1}\n""",
            ),
        ),
    ),
    Mutation(
        name="a lost Job is waited for",
        file="plan.py",
        changes=(("        _end_lost(draft)\n    else:", "        pass\n    else:"),),
    ),
    Mutation(
        name="a suspended attempt that is cancelled loses what it did",
        file="plan.py",
        changes=(
            (
                "        _harvest(draft, child)\n        if current(draft.job) is None:\n",
                "        _end_lost(draft)\n        if current(draft.job) is None:\n",
            ),
        ),
    ),
    Mutation(
        name="a cancelled attempt leaves its suspended Job",
        file="plan.py",
        changes=(("    if child is not None and not child.finished:\n", "    if False:\n"),),
    ),
    Mutation(
        name="a refused change of a Job is not spoken of",
        file="reconcile.py",
        changes=((" and snapshot.rejection == rejection:\n", ":\n"),),
    ),
    Mutation(
        name="a running Job keeps the deadline that it was made with",
        file="plan.py",
        changes=(("        if child.deadline_seconds != wanted.deadline_seconds:\n", "        if False:\n"),),
    ),
    Mutation(
        name="a Job that is resumed has the time that it had before",
        file="plan.py",
        changes=(
            (
                """    resumed = key == "suspend" and not value and child.start_time is not None\n""",
                "    resumed = False\n",
            ),
        ),
    ),
    Mutation(
        name="the operator resumes whatever is suspended",
        file="plan.py",
        changes=(
            (
                "        suspended_by_us = child.suspended and not child.let_go\n",
                "        suspended_by_us = child.suspended\n",
            ),
        ),
    ),
    Mutation(
        name="what the operator has suspended is not known as that",
        file="plan.py",
        changes=(("""suspend_annotation(wanted=value) if key == "suspend" else {}""", "{}"),),
    ),
    Mutation(
        name="a parallelism that Kueue has lowered is put back",
        file="plan.py",
        changes=((" and (child.suspended or not child.takes_fewer):\n", ":\n"),),
    ),
    Mutation(
        name="a start is taken off whatever has become of the Job",
        file="cluster.py",
        changes=(
            (
                """body = {"metadata": {"resourceVersion": resource_version}, "status": {"startTime": None}}""",
                """body: JsonObject = {"status": {"startTime": None}}""",
            ),
        ),
    ),
    Mutation(
        name="a cancellation that is taken back never was one",
        file="plan.py",
        changes=(("        return told or cancelled(", "        return cancelled("),),
    ),
    Mutation(
        name="the phase is whatever somebody has written there",
        file="plan.py",
        changes=(
            (
                "    draft.set(phase=phase_of(draft.status), observed_retry_generation=attempt.generation)\n",
                "",
            ),
        ),
    ),
    Mutation(
        name="pods whose creation is refused are not spoken of",
        file="reconcile.py",
        changes=(("            if child.active:\n", "            if child.active >= 0:\n"),),
    ),
    Mutation(
        name="pods that have started are not asked why they do not end",
        file="reconcile.py",
        changes=(("            if not pods and not child.ready:", "            if not child.active:"),),
    ),
    Mutation(
        name="a look at counts decides more than counts",
        file="reconcile.py",
        changes=(
            (
                "if decided.actions or decided.events or not writable(job.status, decided.status):",
                "if decided.events:",
            ),
        ),
    ),
    Mutation(
        name="a Job that nobody recorded is not read",
        file="reconcile.py",
        changes=(
            (
                "        children = await self._read_all_children(job)\n",
                "        children = await self._read_recorded_children(job, known)\n",
            ),
        ),
    ),
    Mutation(
        name="a Job that nobody recorded is no news",
        file="pace.py",
        changes=(
            (
                'return self.uid != "" and (child.name in self.expected or child.owner_uid != self.uid)',
                "return True",
            ),
        ),
    ),
    Mutation(
        name="the end of a Job that was replaced is news",
        file="intake.py",
        changes=(("        elif child.name in pace.expected or key in memory.to_list:\n", "        else:\n"),),
    ),
    Mutation(
        name="after trouble only recorded Jobs are read",
        file="reconcile.py",
        changes=(("            pace.distrust()\n", ""),),
    ),
    Mutation(
        name="the end of a Job waits for the next look",
        file="intake.py",
        changes=(("                pace.on_child_ended(child)\n", "                pass\n"),),
    ),
    Mutation(
        name="an end is believed that nothing has confirmed",
        file="reconcile.py",
        changes=(("kept.raw, snapshot, proven=False)", "kept.raw, snapshot, proven=True)"),),
    ),
    Mutation(
        name="what the watch has shown is acted on, and nothing has confirmed it",
        file="reconcile.py",
        changes=(("key, raw, snapshot, proven=False)", "key, raw, snapshot, proven=True)"),),
    ),
    Mutation(
        name="a Job that was found gone is taken for one that ended",
        file="questions.py",
        changes=(("last.start_time is None or ", ""),),
    ),
    Mutation(
        name="whatever the watch shows of a job that was left at rest is old",
        file="memory.py",
        changes=(("int(resource_version) > self._forgotten.get(key, 0)", "key not in self._forgotten"),),
    ),
    Mutation(
        name="the end of another Job of that name is believed",
        file="reconcile.py",
        changes=(("        if record is None or record.uid != child.uid:\n", "        if record is None:\n"),),
    ),
    Mutation(
        name="what happens to a job while it is looked at is dropped",
        file="memory.py",
        changes=(("(pace is None or pace.idle(self.monotonic()) > 0)", "True"),),
    ),
    Mutation(
        name="a job shares the looks with those alone that were there when it came",
        file="reconcile.py",
        changes=(("        self._memory.share(key)  # others have come or gone since the last look\n", ""),),
    ),
    Mutation(
        name="jobs that are suspended share the looks that they do not take",
        file="reconcile.py",
        changes=(("_point(child) if wait is not None else Point.HELD", "_point(child)"),),
    ),
    Mutation(
        name="what happens to a job while it is found settled is dropped",
        file="memory.py",
        changes=(("        if self.pace(key).outdated:\n            return 0.0\n", ""),),
    ),
    Mutation(
        name="keys that are due wait for ever when there were too many",
        file="queue.py",
        changes=(("self._working.pop(key) and self._waiting.any_due:", "self._working.pop(key) and False:"),),
    ),
    Mutation(
        name="the few are listed as often as they are looked at",
        file="memory.py",
        changes=(("rest=rest_for(sum(map(len, self._crowds.values())))", "rest=pace.rest"),),
    ),
    Mutation(
        name="the operator's own writes wake it",
        file="pace.py",
        changes=(("        return resource_version in self.resource_versions\n", "        return False\n"),),
    ),
    Mutation(
        name="an error is not tried again",
        file="main.py",
        changes=(
            (
                "            delay = queue.retry(key)\n            log.warning(",
                "            delay = 0.0\n            log.warning(",
            ),
        ),
    ),
    Mutation(
        name="a batch's retry does not say which generation it is for",
        file="document_jobs.py",
        changes=(
            (
                """            "parentGeneration": batch.spec.retry_generation,
            **_settings""",
                """            **_settings""",
            ),
        ),
    ),
    Mutation(
        name="a batch's retry counts as passed on before all jobs have it",
        file="batch_plan.py",
        changes=(("        if not behind:\n", "        if len(behind) < 2:\n"),),
    ),
    Mutation(
        name="a document whose job was deleted runs again without a retry",
        file="batch_plan.py",
        changes=(
            ("return _State.FAILED if index in made or self.cancelled", "return _State.FAILED if self.cancelled"),
        ),
    ),
    Mutation(
        name="a document is completed for as long as its job is there",
        file="batch_plan.py",
        changes=(("        if index in completed or (job is not None", "        if (job is not None"),),
    ),
    Mutation(
        name="a failed document has ended before its retry is passed on to it",
        file="batch_plan.py",
        changes=(("        if job.ended and index not in self.behind:\n", "        if job.ended:\n"),),
    ),
    Mutation(
        name="what is kept of running jobs has no bound",
        file="memory.py",
        changes=(("        if self._size + size > _MOST_KEPT:\n", "        if size > _MOST_KEPT:\n"),),
    ),
    Mutation(
        name="what was kept of a job counts for ever",
        file="memory.py",
        changes=(("        self._size -= self._sizes.pop(key, 0)\n", "        self._sizes.pop(key, 0)\n"),),
    ),
    Mutation(
        name="a job that is back from a backup is known by its old id",
        file="questions.py",
        changes=(("        and status.job_id == job.job_id\n", ""),),
    ),
    Mutation(
        name="an operator with a long queue leaves",
        file="main.py",
        changes=(("max(self.queue.stands_still, self.batch_queue.stands_still) <", "self._oldest_age <"),),
    ),
    Mutation(
        name="a namespace keeps its turn as long as it has keys",
        file="queue.py",
        changes=(
            (
                "            self._turns[namespace] = keys\n        return taken\n",
                "            self._turns = OrderedDict({namespace: keys, **self._turns})\n        return taken\n",
            ),
        ),
    ),
    Mutation(
        name="jobs outside of all tenants share the looks of those that wait",
        file="plan.py",
        changes=(
            (
                "    draft.blocked = no_store(namespace)  # and",
                "    draft.block(no_store(namespace).reason, no_store(namespace).message)  # and",
            ),
        ),
    ),
    Mutation(
        name="a change that a policy takes back is made at each look",
        file="acting.py",
        changes=(("        if wishes & vain.keys():\n", "        if not wishes:\n"),),
    ),
    Mutation(
        name="what an attempt did is taken for what the next one is asked for",
        file="plan.py",
        changes=(("    if not _is_what_runs(draft, dispatched):\n", "    if not dispatched:\n"),),
    ),
    Mutation(
        name="a cancellation passes over a Job that is being deleted",
        file="plan.py",
        changes=(("(draft.cancelled or not child.deleting)", "not child.deleting"),),
    ),
    Mutation(
        name="why pods may not be read is said to nobody",
        file="reconcile.py",
        changes=(
            (
                "                return replace(snapshot, rejection=_refusal(child, error))\n",
                "                raise error\n",
            ),
        ),
    ),
    Mutation(
        name="a cancelled retry leaves a late request what it was sent for",
        file="batch_plan.py",
        changes=(
            ("            _leave(draft, behind)\n", "            draft.set(passed_on_generation=draft.generation)\n"),
        ),
    ),
    Mutation(
        name="batches share the starts, whosever they are",
        file="batch_memory.py",
        changes=(
            (
                "        return self._share(key).starting * sum(share.starting > 0 for",
                "        return sum(share.starting for",
            ),
        ),
    ),
    Mutation(
        name="an operator that is stopped sends no Events that wait",
        part="operator",
        file="main.py",
        changes=(
            (
                "        await asyncio.gather(self._cluster.events.flush(), self._batch_cluster.events.flush())\n",
                "",
            ),
        ),
    ),
    Mutation(
        name="a publish that looks at no fence",
        part="worker",
        file="history.py",
        changes=(("        if fence > version.generation:\n", "        if fence < 0:\n"),),
    ),
    Mutation(
        name="an attempt that raises no fence",
        part="worker",
        file="history.py",
        changes=(("        if fence == generation or (", "        if True or ("),),
    ),
    Mutation(
        name="a publish over a newer version",
        part="worker",
        file="history.py",
        changes=(
            (
                "        _check_superseded(state=state, version_id=version.version_id, number=version.number,"
                " created=created)\n",
                "",
            ),
        ),
    ),
    Mutation(
        name="the pointer written over what is there",
        part="worker",
        file="store.py",
        changes=(('mode="create", use_multipart=False', 'mode="overwrite", use_multipart=False'),),
    ),
    Mutation(
        name="a lost answer taken for a lost race",
        part="worker",
        file="store.py",
        changes=(("return bytes(obstore.get(self._backend, key).bytes()) == data", "return False"),),
    ),
    Mutation(
        name="an unanswered creation is not repeated",
        part="worker",
        file="store.py",
        changes=(("if not _UNANSWERED.search(str(error)) or", "if True or"),),
    ),
    Mutation(
        name="a publish with outputs missing",
        part="worker",
        file="publish.py",
        changes=(
            ("    if len(missing):\n", "    if len(missing) < 0:\n"),
            ("for index in range(segments)),\n            title", "for index in found),\n            title"),
        ),
    ),
    Mutation(
        name="a segment under another pipeline",
        part="worker",
        file="segment.py",
        changes=(("    check_pipeline(plan=plan, attempt=context.attempt)\n", ""),),
    ),
    Mutation(
        name="the attempt's file believed whatever its digest",
        part="worker",
        file="attempt.py",
        changes=(("    _check_digest(raw=raw, env=env)\n", ""),),
    ),
    Mutation(
        name="a job claims a number again each time",
        part="worker",
        file="versions.py",
        changes=(
            (
                """    for _ in range(MAX_TRIES):
        held = _held(store=store, claim=claim)
        if held is not None:
            return held
        newest""",
                """    for _ in range(MAX_TRIES):
        newest""",
            ),
            ("        if newest == 0 or store.get(key=newest_key) != owner:\n", "        if newest_key:\n"),
            (
                """        held = _held(store=store, claim=claim)
        if held is not None:
            return held
    raise""",
                """        return number
    raise""",
            ),
        ),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant.

    Args:
        caught: the test that failed first; empty when none did.
        words: what it said.
    """

    caught: str
    words: str
    seconds: float


def mutate(folder: Path, mutation: Mutation) -> None:
    """Apply a mutation to a copy.

    Raises:
        ValueError: as `mutated`.
    """
    path = folder / f"ingestion_{mutation.part}" / mutation.file
    path.write_text(mutated(path.read_text(), mutation))


def mutated(text: str, mutation: Mutation) -> str:
    """Return a file's text with the mutation.

    Raises:
        ValueError: when a text is not found exactly once: the code has moved on, and the mutation must follow.
    """
    for old, new in mutation.changes:
        if text.count(old) != 1:
            raise ValueError(f"{mutation.name}: found {text.count(old)} times in {mutation.file}: {old!r}")
        text = text.replace(old, new)
    return text


@contextmanager
def mutant(mutation: Mutation) -> Iterator[Path]:
    """Make a copy of the mutation's part of the product, with the mutation, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        folder = Path(place) / mutation.part
        shutil.copytree(ROOT / mutation.part, folder, ignore=shutil.ignore_patterns("__pycache__"))
        mutate(folder, mutation)
        yield folder


def try_out(mutation: Mutation) -> Verdict:
    """Run the tests of its part on a mutant."""
    begun = time.monotonic()
    with mutant(mutation) as folder:
        env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT / 'tests'}", "INGESTION_SIMULATION_SHRINK": "no"}
        env.pop("INGESTION_FAULTS", None)
        env.pop("INGESTION_FAULTS_RESULTS", None)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short"]
        limited = [
            "sh",
            "-c",
            f'ulimit -S -t {LIMIT_SECONDS} && exec "$@"',
            "sh",
            *command,
            f"--timeout={PATIENCE_SECONDS}",
        ]
        done = subprocess.run(
            [*limited, *SUITES[mutation.part]], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
    return read(done.returncode, done.stdout, time.monotonic() - begun)


def read(code: int, out: str, seconds: float) -> Verdict:
    """Read a run's end from pytest's output.

    Raises:
        RuntimeError: when the tests could not be run at all.
    """
    if code == 0:
        return Verdict(caught="", words="", seconds=seconds)
    if code == -signal.SIGXCPU:
        return Verdict(caught="the time limit", words="", seconds=seconds)
    test = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py)(?:::(.+?))?(?: - .*)?$", out, re.MULTILINE)
    if code != 1 or test is None:
        raise RuntimeError(out[-3_000:])
    said = re.search(r"invariant \d.*", out) or re.search(r"(?<=^E ) +\S.*", out, re.MULTILINE)
    words = said[0].strip() if said else ""
    return Verdict(caught=test[2] or test[1], words=words[:90], seconds=seconds)


def table(verdicts: dict[Mutation, Verdict]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| mutation | in | caught by | which says |", "| --- | --- | --- | --- |"]
    for mutation, verdict in verdicts.items():
        by = f"`{verdict.caught}`" if verdict.caught else f"nothing: {mutation.harmless or 'SURVIVED'}"
        words = verdict.words.replace("|", "\\|")
        lines.append(f"| {mutation.name} | `{mutation.part}/{mutation.file}` | {by} | {words} |")
    return "\n".join(lines)


def write(text: str) -> None:
    """Put the section into the page, in the place of the one that is there."""
    page = PAGE.read_text() if PAGE.exists() else "# Reliability\n"
    section = f"{HEADING}\n\n{INTRODUCTION}\n{text}\n"
    before, found, rest = page.partition(HEADING + "\n")
    following = re.search(r"^## ", rest, re.MULTILINE) if found else None
    tail = rest[following.start() :] if following else ""
    PAGE.write_text(f"{before.rstrip()}\n\n{section}" + (f"\n{tail}" if tail else ""))


def main(arguments: list[str]) -> int:
    """Try all mutations, or those whose names contain one of the arguments; return 1 when one survived."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    parser.add_argument("--workers", type=int, default=2, help="mutants that are tried at the same time")
    options = parser.parse_args(arguments)
    verdicts: dict[Mutation, Verdict] = {}
    chosen = [item for item in MUTATIONS if not options.names or any(name in item.name for name in options.names)]
    for mutation in chosen:
        with mutant(mutation):
            pass  # before hours are spent: each of them still applies
    with ThreadPoolExecutor(options.workers) as pool:
        tries = {pool.submit(try_out, mutation): mutation for mutation in chosen}
        for tried in as_completed(tries):
            mutation, verdict = tries[tried], tried.result()
            verdicts[mutation] = verdict
            said = f"{verdict.caught or 'SURVIVED'}  {verdict.words}"
            print(f"{verdict.seconds:5.0f} s  {mutation.name}: {said}", flush=True)
    verdicts = {mutation: verdicts[mutation] for mutation in chosen}
    print(table(verdicts))
    if options.write:
        write(table(verdicts))
    return int(any(not verdict.caught and not mutation.harmless for mutation, verdict in verdicts.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
