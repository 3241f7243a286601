"""Documents to ingest: two real manuals out of Debian packages, or made ones where those cannot be had."""

import gzip
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from local_cluster import paths
from local_cluster.progress import say

# What the flaky provider refuses; the words are rare in both manuals, so that a few segments fail.
PATTERN: Final = "Delaunay|webread|rsync"
MADE_PAGES: Final = {"octave-doc": 1100, "debian-reference-en": 260}
FILES: Final = {"octave-doc": "octave.pdf", "debian-reference-en": "debian-reference.en.pdf"}
QUESTIONS: Final = {
    "octave-doc": "How do I compute a Delaunay triangulation of scattered points?",
    "debian-reference-en": "How do I copy files to another machine with rsync?",
}


def manual(package: str) -> Path:
    """Return the PDF of a Debian package, kept in the cache; a made one of as many pages where it cannot be had."""
    folder = paths.cache() / "documents"
    folder.mkdir(exist_ok=True)
    file = folder / FILES[package]
    if file.exists():
        return file
    try:
        _unpack(package, file)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"{package} cannot be had ({error}); making a document of {MADE_PAGES[package]} pages instead")
        file = file.with_stem(f"made-{file.stem}")  # the next run tries again
        if not file.exists():
            _make(file, pages=MADE_PAGES[package])
    return file


def _unpack(package: str, file: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o777)  # apt downloads as its own user
        _run(["apt-get", "download", package], folder=scratch)
        (archive,) = scratch.glob("*.deb")
        _run(["dpkg-deb", "--extract", str(archive), "root"], folder=scratch)
        found = next((scratch / "root").rglob(f"{file.name}*"), None)
        if found is None:
            raise FileNotFoundError(f"no {file.name} in {package}")
        content = found.read_bytes()
        part = file.with_suffix(".part")
        part.write_bytes(gzip.decompress(content) if found.suffix == ".gz" else content)
        part.replace(file)


def _run(command: list[str], *, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _make(file: Path, *, pages: int) -> None:
    from reportlab.pdfgen.canvas import Canvas

    words = PATTERN.split("|")
    canvas = Canvas(str(file.with_suffix(".part")))
    for page in range(pages):
        canvas.drawString(72, 740, f"Page {page + 1}: about subject {page % 97}.")
        for line in range(30):
            canvas.drawString(
                72, 710 - 18 * line, f"Sentence {line} of page {page + 1} says something about {line * page}."
            )
        if page % 211 == 100:
            canvas.drawString(72, 60, f"Here stands {words[page % len(words)]}, copied to another machine.")
        canvas.showPage()
    canvas.save()
    file.with_suffix(".part").replace(file)


def note(folder: Path) -> Path:
    """Write a text short enough for a single pass, which the provider refuses, and return its path."""
    file = folder / "note.txt"
    file.write_text(
        "A note on meshes.\n\nA Delaunay triangulation maximises the smallest angle of its triangles. "
        "It is unique unless four points lie on one circle.\n"
    )
    return file
