"""Reloads of a person's ruleset, and what they cost."""
