"""What would stop a forward from working: each finding a function of facts, read at one edge."""
