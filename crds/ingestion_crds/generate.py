"""Write the files that are generated from the models; `--check` fails when one has drifted instead."""

from __future__ import annotations

import sys
from pathlib import Path

from ingestion_crds import errors, schema
from ingestion_crds.constants import BATCH_PLURAL, PLURAL

_ROOT = Path(__file__).parent.parent.parent


def generated() -> dict[Path, str]:
    """Return the content of each generated file by its path."""
    files = {_ROOT / "docs" / "error-codes.md": errors.markdown()}
    # Helm installs what lies in a chart's crds folder, and never deletes it.
    for folder in (_ROOT / "crds", _ROOT / "charts" / "ingestion-operator" / "crds"):
        files[folder / f"{PLURAL}.yaml"] = schema.render(schema.custom_resource_definition())
        files[folder / f"{BATCH_PLURAL}.yaml"] = schema.render(schema.batch_resource_definition())
    return files


def main() -> None:
    """Write the files, or with --check exit with 1 and name those that differ."""
    drifted = [path for path, text in generated().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        for path in drifted:
            sys.stderr.write(f"{path.relative_to(_ROOT)} is not what the models say: run `make generate`\n")
        raise SystemExit(1 if drifted else 0)
    for path in drifted:
        path.write_text(generated()[path])
        sys.stderr.write(f"wrote {path.relative_to(_ROOT)}\n")


if __name__ == "__main__":
    main()
