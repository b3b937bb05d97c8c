"""Write the JSON schemas of scheduling snapshots and reports beside their documentation."""

from __future__ import annotations

import json
from pathlib import Path

from spinney.scheduler.snapshot_file import report_schema, snapshot_schema

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """Write both files."""
    for name, schema in (("snapshot", snapshot_schema()), ("report", report_schema())):
        text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        (DOCS / f"scheduler-{name}.schema.json").write_text(text)


if __name__ == "__main__":
    main()
