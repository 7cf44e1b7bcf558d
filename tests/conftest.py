"""Puts tests/ on the path, so that every level can import `fakes`."""
