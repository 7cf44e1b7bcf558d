"""The hub server of scripts/, importable by path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

spec = importlib.util.spec_from_file_location("hub_server", ROOT / "scripts" / "hub_server.py")
assert spec and spec.loader
sys.modules["hub_server"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["hub_server"])
