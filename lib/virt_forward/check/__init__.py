"""Finding what stops a forward from working: pure functions of facts that reading.py collects."""
