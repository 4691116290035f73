"""One run, a comparison of arms: network up, verify, start ranks, collect, summarise."""
