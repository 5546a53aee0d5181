"""One change of guests, from start to end: state, kernel, files, connections."""
