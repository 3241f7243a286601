"""The REST API: retry, progress, upload and search over IngestionJobs and the tenants' buckets.

What takes requests in, and answers them:

    main          the process
    options       where it is and where it listens, and its bounds
    app           puts all of this together, and connects when the process starts
    protocol      HTTP/1.1, with bounds on what a stranger sends
    middleware    of every request: its id, its log line, its limits
    auth          API keys, and who a request comes from
    routes        the operations
    problems      errors, as clients see them
    metrics       what Prometheus sees

What the operations work with (`services` holds what is connected):

    jobs          IngestionJobs and IngestionBatches, read live by their ids, and made from an upload
    job_index     all of them in memory: their ids and lists
    views         what a client sees of one
    documents     what a client sees of each of its documents
    retry         one new generation, however many ask for it
    upload        the body of an ingest, read as it arrives
    forms         what its fields say of the documents
    idempotency   the header by which a request is sent again
    searching     searches, in threads of their own
    stores        the tenants' buckets
    slots         how many uploads or searches go on at the same time
    kube_secrets  Secrets as text

`keys` is a command by itself: `ingestion-keys`.
"""
