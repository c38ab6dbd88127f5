"""Checks a run for signs of trouble; a finding has evidence and the setting to change."""

from qzhou.evaluation.diagnosis.checks import Diagnosis, diagnose, diagnosis_text
from qzhou.evaluation.diagnosis.facts import Facts
from qzhou.evaluation.diagnosis.finding import Finding, Skipped

__all__ = ["Diagnosis", "Facts", "Finding", "Skipped", "diagnose", "diagnosis_text"]
