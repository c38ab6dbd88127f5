"""Ray platform that turns raw text datasets into a text-embedding model and serves it.

Nothing is imported here: ``import qzhou`` loads neither torch nor ray.
"""

__version__ = "0.1.0"
