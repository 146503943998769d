"""Set weights to zero by an allocation."""

__all__: list[str] = []
