"""Who holds which host port, and what the host itself has against a claim."""
