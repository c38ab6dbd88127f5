"""What a run of any size would take, before it starts: rows, tokens, FLOPs, bytes, time, machines, money."""
