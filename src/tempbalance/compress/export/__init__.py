"""Allocations in the formats of other tools. Keep the allocation's own file: every other format loses something."""

__all__: list[str] = []
