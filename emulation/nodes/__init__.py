"""Where a node lives: a network namespace (netns), or this host's loopback (host, the null twin)."""

__all__: list[str] = []
