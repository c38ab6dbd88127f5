"""Reading raw files: where they are, how they are opened and cut, and their rows."""
