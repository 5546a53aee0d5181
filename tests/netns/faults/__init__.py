"""Hooks that die, fail or meet what somebody else has broken; the table is right afterwards."""
