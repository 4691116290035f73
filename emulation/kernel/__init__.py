"""How the kernel is spoken to: namespaces, system calls, netlink, counters."""
