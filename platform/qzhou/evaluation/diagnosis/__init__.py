"""Signs of trouble that a run shows: each with its evidence, and the setting to change."""

from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import Finding, Unchecked
from qzhou.evaluation.diagnosis.signs import content, diagnose, lines, unchecked

__all__ = ["Facts", "Finding", "Unchecked", "content", "diagnose", "lines", "unchecked"]
