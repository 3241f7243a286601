"""The REST API: retry, progress, upload and search over IngestionJobs and the tenants' buckets."""
