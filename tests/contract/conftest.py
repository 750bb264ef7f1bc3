"""Fixtures that several contract suites share."""

from tests.contract.bench import bench, make

__all__ = ["bench", "make"]
