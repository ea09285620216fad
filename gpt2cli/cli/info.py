def info() -> None:
    """Stub."""
