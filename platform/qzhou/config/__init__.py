"""The typed recipe: one TOML file is one whole run."""
