"""What was found, for people: tables for the terminal, one page for the browser."""

__all__: list[str] = []
