"""The records that flow through a run, the prompts put before them, and the storage they lie on."""
