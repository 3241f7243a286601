"""What operator, API and worker share: the resources and what belongs to them, and how processes reach a cluster.

IngestionJob and IngestionBatch, as data:

    job        the IngestionJob, as pydantic models
    batch      the IngestionBatch, a list of documents with an IngestionJob for each
    schema     their CustomResourceDefinitions, made from the models
    retry      the rule that admits a retry
    indexset   sets of segments, as a Job writes its indexes
    errors     the table of error codes
    digest     by which a pod knows its file
    constants  names that packages share
    generate   writes the files that are made from the models and the table

What the processes are made of:

    config     the installation's configuration
    kube       the client of the API server
    follow     a list and then a watch, by that client
    logs       log lines

The worker has no cluster: of these four it uses `logs` alone.
"""

from __future__ import annotations

from typing import Any

JsonObject = dict[str, Any]
