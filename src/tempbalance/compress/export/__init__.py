"""Allocations as the files of other tools."""

__all__: list[str] = []
