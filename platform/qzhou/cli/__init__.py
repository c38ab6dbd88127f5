"""The command ``qzhou``."""
