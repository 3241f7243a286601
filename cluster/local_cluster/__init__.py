"""Clusters for development and tests: a bare control plane, a kind cluster, and the images for it.

Nothing here needs a container registry; where one answers, its images are used instead of own builds.
"""
