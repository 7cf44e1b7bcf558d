"""orch: pull, build, serve, migrate: Ollama, llama.cpp and vLLM behind one address."""

__version__ = "0.1.0"
