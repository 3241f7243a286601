"""Which container engine to use, and how to call it."""

import os
import re
import resource
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from local_cluster import archive, binaries, host, paths
from local_cluster.commands import run, succeeds
from local_cluster.errors import LocalClusterError
from local_cluster.progress import say

ANSWER_SECONDS = 8.0
PULL_SECONDS = 300.0
REGISTRY_SECONDS = 6.0
CONTAINER_PROCESSES = 32_768
PROBE_IMAGE = "localhost/local-cluster-probe"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine: `docker` or `podman`, and what has to be added to the environment to call it."""

    name: str
    env: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str | Path, timeout: float | None = None, show: bool = False) -> str:
        """Call the engine and return its output; raises LocalClusterError as `commands.run` does."""
        return run([self.name, *arguments], env=self.env, timeout=timeout, show=show)

    def succeeds(self, *arguments: str | Path, timeout: float | None = None) -> bool:
        """Whether a call of the engine ends with success within `timeout` seconds."""
        return succeeds([self.name, *arguments], env=self.env, timeout=timeout)

    def has_image(self, name: str) -> bool:
        """Whether the engine holds the image `name`."""
        return self.succeeds("image", "inspect", name, timeout=60)

    def import_filesystem(self, *, file: Path, name: str, changes: tuple[str, ...] = ()) -> None:
        """Make the image `name` of a root filesystem's tar `file`; `changes` are Dockerfile lines."""
        options = [part for change in changes for part in ("--change", change)]
        self.run("import", *options, file, name)


@cache
def for_images() -> Engine:
    """The engine that builds images: docker where its engine answers, else podman (installed if it may be).

    Raises LocalClusterError that says what is missing.
    """
    if _docker_answers():
        return docker()
    return podman()


@cache
def for_kind() -> Engine:
    """The engine that runs kind's node: docker where it runs privileged containers, else podman as root.

    Raises LocalClusterError that says what is missing.
    """
    if _docker_answers():
        reason = _why_docker_cannot()
        if reason is None:
            return docker()
        say(f"Docker answers but cannot run privileged containers, so podman is tried: {reason}")
    if os.geteuid() != 0:
        raise LocalClusterError(
            "a kind cluster needs a Docker engine that answers this user (`docker info`) and runs privileged "
            "containers, or root on Debian for podman; this machine offers neither. Point CLUSTER=current and "
            "KUBECONFIG at a cluster of your own instead."
        )
    return podman()


def docker() -> Engine:
    """Docker, which builds with BuildKit: older ones leave that off unless told."""
    return Engine(name="docker", env={"DOCKER_BUILDKIT": "1"})


@cache
def podman() -> Engine:
    """podman with limits and a runtime that this machine allows; raises LocalClusterError if it cannot be had."""
    try:
        host.require(programs=host.PODMAN_PROGRAMS)
    except LocalClusterError as error:
        raise LocalClusterError(f"there is no Docker engine that answers, and for podman {error}") from error
    return Engine(name="podman", env={"CONTAINERS_CONF": os.environ.get("CONTAINERS_CONF") or str(_containers_conf())})


def holding(*, container: str) -> Engine | None:
    """The engine of this machine that holds the container named `container`, None where neither does."""
    inspect = ("container", "inspect", container)
    if _docker_answers() and docker().succeeds(*inspect, timeout=60):
        return docker()
    # podman as it is: what it lacks to run a node of ours is not needed to ask it.
    if Engine(name="podman").succeeds(*inspect, timeout=60):
        return podman()
    return None


def can_pull(*, engine: Engine, image: str) -> bool:
    """Whether `image` is there or can be pulled; decides within 6 s when the registry does not answer."""
    if engine.has_image(image):
        return True
    if not _registry_answers(engine=engine, image=image):
        return False
    say(f"pulling {image}")
    return engine.succeeds("pull", "--quiet", image, timeout=PULL_SECONDS)


def pull(*, engine: Engine, image: str) -> None:
    """Pull `image`, which nothing else can stand for, although the registry does not answer the client.

    The engine may know a mirror or a proxy that the client does not. Raises LocalClusterError that says what to do.
    """
    say(f"pulling {image}")
    try:
        engine.run("pull", "--quiet", image, timeout=PULL_SECONDS)
    except LocalClusterError as error:
        raise LocalClusterError(
            f"{image} cannot be pulled, and making another needs root. Make `{engine.name} pull {image}` work, as what "
            f"the engine holds is used; or run as root on Debian.\n{error}"
        ) from error


def _registry_answers(*, engine: Engine, image: str) -> bool:
    # A look at the manifest: a pull against a registry that does not answer retries for minutes.
    # podman takes no tag beside a digest there.
    name = re.sub(":[^:/@]+@", "@", image) if engine.name == "podman" else image
    return engine.succeeds("manifest", "inspect", name, timeout=REGISTRY_SECONDS)


@cache
def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    answer = succeeds(["docker", "version", "--format", "{{.Server.Version}}"], timeout=ANSWER_SECONDS)
    return answer and "podman" not in run(["docker", "version"], timeout=ANSWER_SECONDS).lower()


@cache
def _why_docker_cannot() -> str | None:
    image = f"{PROBE_IMAGE}:{os.getpid()}"  # another run may be trying at the same time
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "probe.tar"
        program = binaries.path(name="pause")
        archive.write(file=file, name=image, entrypoint="/pause", files={"/pause": program})
        try:
            docker().run("load", "--input", file, timeout=60)
            docker().run("run", "--rm", "--privileged", image, "-v", timeout=60)
        except LocalClusterError as error:
            return str(error)
        finally:
            docker().succeeds("rmi", "--force", image, timeout=60)
    return None


def _containers_conf() -> Path:
    files = host.hard_limit(resource.RLIMIT_NOFILE)
    # podman lowers its own limit to this before it starts a container, which without CAP_SYS_RESOURCE cannot raise it
    # again: "error setting rlimit type 6".
    processes = min(host.hard_limit(resource.RLIMIT_NPROC), CONTAINER_PROCESSES)
    lines = [
        "# written by local_cluster: limits that this machine allows",
        "[containers]",
        f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]',
    ]
    if not host.only_unified_cgroups():
        lines += ["[engine]", 'runtime = "runc"']  # crun refuses hybrid cgroups
    file = paths.cache() / "containers.conf"
    content = "\n".join(lines) + "\n"
    if not file.exists() or file.read_text() != content:
        scratch = file.with_suffix(f".{os.getpid()}")
        scratch.write_text(content)
        scratch.replace(file)
    return file
