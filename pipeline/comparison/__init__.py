"""Variants of a recipe trained on several seeds under one schedule, and what sets them apart."""
