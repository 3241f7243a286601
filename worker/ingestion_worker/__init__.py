"""The worker: three commands that turn a document into a live version of a knowledge base.

docs/worker-contract.md says what a container gets and does; docs/store-layout.md what lies where.

The API is built on this package too. It alone uses `search`, `budget`, and `put_upload` of `store`: no command does.
"""
