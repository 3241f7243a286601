"""Build container images with docker or podman, save them, and find or make a Python base image."""

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster import debian, engine, paths, versions
from local_cluster.progress import locked, say, timed

PYTHON_PACKAGES = ("python3", "python3-venv", "ca-certificates")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def build(
    *,
    dockerfile: Path,
    tag: str,
    context: Path = Path("."),
    build_args: Mapping[str, str] | None = None,
    from_environment: Sequence[str] = (),
    target: str | None = None,
) -> None:
    """Build `dockerfile` in the folder `context` as the image `tag`; unchanged steps come from the engine's cache.

    `from_environment` names arguments whose values are those of our own variables of these names, where they are set.
    `target` names the stage to build, the last one by default.

    Raises LocalClusterError, with the end of the output, when the build fails or there is no engine.
    """
    builder = engine.for_images()
    arguments: list[str | Path] = ["build", "--file", dockerfile, "--tag", tag]
    for name, value in (build_args or {}).items():
        arguments += ["--build-arg", f"{name}={value}"]
    # podman passes proxies on by itself. Without their values, which may be passwords and would be in error messages.
    given = [*from_environment, *(PROXY_VARIABLES if builder.name == "docker" else ())]
    for name in filter(os.environ.get, given):
        arguments += ["--build-arg", name]
    if target:
        arguments += ["--target", target]
    if builder.name == "podman":
        arguments += ["--network", "host", "--layers", "--format", "docker", *_certificates()]
    with timed(f"building {tag} with {builder.name}"):
        builder.run(*arguments, context, show=True)


def save(*, tags: list[str], file: Path) -> None:
    """Write the images `tags` to one archive `file` that `load` takes; raises LocalClusterError on failure."""
    builder = engine.for_images()
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    several = ["--multi-image-archive"] if builder.name == "podman" and len(tags) > 1 else []
    try:
        with timed(f"saving {' '.join(tags)}"):
            builder.run("save", *several, "--output", scratch, *tags)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def base_image() -> str:
    """The name of a Python base image that the engine holds, for a Dockerfile's `ARG BASE`.

    It is the value of BASE_IMAGE if that is set, else the registry's Python where it can be pulled, else Debian's own
    Python out of debootstrap (as root; made once, kept in the cache).

    Raises LocalClusterError where none of them works.
    """
    builder = engine.for_images()
    named = os.environ.get("BASE_IMAGE")
    if named:
        return named
    if engine.can_pull(engine=builder, image=versions.PYTHON_IMAGE):
        return versions.PYTHON_IMAGE
    name = f"localhost/ingestion-base:{versions.PYTHON_DEBIAN}-{_base_key()}"
    if builder.has_image(name):
        return name
    if os.geteuid() != 0:
        engine.pull(engine=builder, image=versions.PYTHON_IMAGE)
        return versions.PYTHON_IMAGE
    file = _base_filesystem()
    with timed(f"importing {name}"):
        builder.import_filesystem(file=file, name=name, changes=('CMD ["python3"]', "ENV LANG=C.UTF-8"))
    return name


def _base_filesystem() -> Path:
    folder = paths.cache() / "images"
    file = folder / f"base-{_base_key()}.tar"
    with locked(folder / "base.lock"):
        if not file.exists():
            say(f"{versions.PYTHON_IMAGE} cannot be pulled: making a base image from Debian's packages")
            with debian.building(folder=folder, prefix="base-image-") as root:
                with timed("base image: debootstrap"):
                    debian.bootstrap(folder=root, release=versions.PYTHON_DEBIAN, packages=PYTHON_PACKAGES)
                (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
                debian.pack(folder=root, file=file)
    return file


def _base_key() -> str:
    made_by = inspect.getsource(debian) + inspect.getsource(_base_filesystem)
    return hashlib.sha256(repr((versions.PYTHON_DEBIAN, PYTHON_PACKAGES, made_by)).encode()).hexdigest()[:8]


def _certificates() -> list[str]:
    """Where the host trusts certificates of its own (a company's proxy), the build's pip has to trust them too."""
    if not any(os.environ.get(name) for name in BUNDLE_VARIABLES) or not BUNDLE.exists():
        return []
    pip = ["--env", f"PIP_CERT={BUNDLE}", "--env", f"SSL_CERT_FILE={BUNDLE}"]
    return ["--volume", f"{BUNDLE}:{BUNDLE}:ro", *pip]
