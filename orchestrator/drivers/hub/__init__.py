"""The Hugging Face hub. `client` asks what a revision means and gets its files, `download` reads the bytes."""

from orchestrator.drivers.hub.client import Hub, Secret

__all__ = ["Hub", "Secret"]
