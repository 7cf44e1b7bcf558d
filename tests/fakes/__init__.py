"""The world in memory: what every driver of orchestrator.drivers.base promises, without a process or a file.

The contract suite (tests/contract) holds these and the real drivers to the same behaviour.
"""
