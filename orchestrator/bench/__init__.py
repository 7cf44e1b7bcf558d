"""Measuring what serves: load, the field's metrics, and results that are kept."""
