"""What tests here share with those that run engines."""

from __future__ import annotations

from docker_orch import environments

__all__ = ["environments"]
