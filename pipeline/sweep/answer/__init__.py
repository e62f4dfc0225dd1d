"""From the trials of a search to an answer: confirm the best points, compare them, and say so."""

from pipeline.sweep.answer.arms import COMPARABLE
from pipeline.sweep.answer.confirmation import Answer, Confirmation, is_confirmed
from pipeline.sweep.answer.recipe import best_recipe

__all__ = ["COMPARABLE", "Answer", "Confirmation", "best_recipe", "is_confirmed"]
