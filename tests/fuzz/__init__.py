"""Random input for every parser of text and bytes that others write; see ``tests/fuzz/run --help``."""
