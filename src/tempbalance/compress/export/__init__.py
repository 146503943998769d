"""Allocations in the formats of other tools. Keep the allocation's own file: other formats omit some fields."""

__all__: list[str] = []
