"""Golden facts of the papers and their published code, by method."""

from __future__ import annotations

import json
from pathlib import Path

GOLDEN = json.loads(Path(__file__).with_name("golden_dynamic.json").read_text())
