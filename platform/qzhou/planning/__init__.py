"""What a run of any size would take: rows, tokens, operations, bytes, time, machines, money; before it is started."""
