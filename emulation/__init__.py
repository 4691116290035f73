"""The network: nodes in namespaces of their own, joined by links whose rate is what was asked for.

Import the module that you need (`from emulation.spec.units import parse_rate`); this file imports nothing, so
that the agents which run on the nodes start in milliseconds. Standard library only; never torch, never
`testbed`.
"""

__all__: list[str] = []
