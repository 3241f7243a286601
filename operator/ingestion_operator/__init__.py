"""The operator: watch → key → snapshot → plan → one status write → actions.

What does the work:

    main               the process, its watches and its health
    login              how kopf, which runs the process, connects and reads
    leader             of several replicas one works
    queue              which key is looked at next
    reconcile          looks at one job: reads a snapshot, has it planned, writes the status, acts
    cluster            the requests that this takes
    creation_failures  one of them, asked for many Jobs at once: why their pods are not created
    metrics            what Prometheus sees

What decides, and sends nothing:

    plan               what is to be recorded and done next
    actions            what a plan may ask for
    summary            the conditions that follow from what is recorded
    questions          what can be told from an IngestionJob and its Job alone
    pace               how often a job is looked at, and how
    children           Jobs and ConfigMaps: built, and read back
    results            how pods ended, and what they said
    obstacles          why pods do not start, or do not end
"""
