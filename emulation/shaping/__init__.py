"""How a link is made to be what was asked for."""

__all__: list[str] = []
