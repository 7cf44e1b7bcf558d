"""The Hugging Face hub. `client` asks what a revision means and gets its files; `transfer` brings the bytes."""

from orchestrator.drivers.hub.client import Hub
from orchestrator.drivers.hub.token import Secret

__all__ = ["Hub", "Secret"]
