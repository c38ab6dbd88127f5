"""The records that flow through a run, their prompts, and the storage they lie on."""
