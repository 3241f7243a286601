"""The operator: watch → key → snapshot → plan → one status write → actions.

In names, a job is an IngestionJob, and a child is a Kubernetes Job that was made for one.

What does the work:

    main               the process: its watches, its workers, its health
    login              how kopf, which runs the process, connects and reads
    leader             of several replicas one works
    intake             what the watches show, and which key that wakes
    queue              which key is looked at next
    reconcile          looks at one job: reads a snapshot, has it planned, writes the status, has it acted on
    acting             does what was planned, and what it means when the API server refuses
    cluster            the requests that this takes
    custom_resources   those about the IngestionJob itself: its status, the answer to an annotation, Events
    creation_failures  one of them, asked for many Jobs at once: why their pods are not created
    metrics            what Prometheus sees

What decides, and sends nothing:

    plan               what is to be recorded and done next
    actions            what a plan may ask for
    summary            the conditions that follow from what is recorded
    questions          what can be told from an IngestionJob and its Job alone
    memory             what is remembered of all jobs, and which of them share the looks
    pace               the same of one job: how often it is looked at, and how
    children           Jobs and ConfigMaps: built, and read back
    results            how pods ended, and what they said
    obstacles          why pods do not start, or do not end
    retry_requests     how an annotation that asks for a retry is answered

The same for batches: batch_intake, batch_memory, batch_reconcile and batch_cluster do the work, with custom_resources
too; batch_plan with batch_actions decides, and document_jobs has the IngestionJobs of a batch.
"""
