"""Where the stages need the object store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from faults.scenarios import PREPARE, PUBLISH, SEGMENTS
from faults.store_proxy import StoreCall


@dataclass(frozen=True, kw_only=True)
class Place:
    """Requests of a stage: by their verbs, and by patterns in the key and the body."""

    stage: str
    verbs: tuple[str, ...]
    key: str
    body: bytes = b""

    def __call__(self, call: StoreCall) -> bool:
        return bool(call.verb in self.verbs and re.search(self.key, call.key) and re.search(self.body, call.body))


# In the order in which a job comes to them.
PLACES = {
    "PUT number": Place(stage=PREPARE, verbs=("PUT",), key="/numbers/"),
    "PUT claim": Place(stage=PREPARE, verbs=("PUT",), key="/claims/"),
    "PUT fence": Place(stage=PREPARE, verbs=("PUT",), key="/history/"),
    "LIST history": Place(stage=PREPARE, verbs=("LIST",), key="/history/"),
    "GET source": Place(stage=PREPARE, verbs=("HEAD", "GET"), key="^uploads/"),
    "PUT copy": Place(stage=PREPARE, verbs=("PUT",), key="/sources/"),
    "PUT plan": Place(stage=PREPARE, verbs=("PUT",), key="/plans/"),
    "LIST output": Place(stage=SEGMENTS, verbs=("LIST",), key="/segments/.*/00000[12]"),
    "GET plan": Place(stage=SEGMENTS, verbs=("GET",), key="/plans/"),
    "GET copy": Place(stage=SEGMENTS, verbs=("GET",), key="/sources/"),
    "PUT output": Place(stage=SEGMENTS, verbs=("PUT",), key="/segments/.*/000001/"),
    "LIST outputs": Place(stage=PUBLISH, verbs=("LIST",), key="/segments/[^/]+/?$"),
    "PUT pointer": Place(stage=PUBLISH, verbs=("PUT",), key="/history/", body=b'"number": 2'),
}
WRITES = [name for name, place in PLACES.items() if "PUT" in place.verbs]
