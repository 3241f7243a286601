"""The operator: watch → key → snapshot → plan → actions → one status write.

`plan` decides (pure), `children` and `outcome` translate between the domain and Kubernetes objects (pure),
`reconcile` reads, applies and writes, `queue` wakes it, `main` is the only module that knows kopf.
"""
