"""What a rank writes down: a line per step, spans, and what it had of the machine."""
