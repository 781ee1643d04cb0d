"""How: shapes, data, timing, and the machine that the numbers belong to."""
