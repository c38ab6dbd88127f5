"""``qzhou doctor``: whether this machine, and what a recipe needs around it, are fit for a run."""
