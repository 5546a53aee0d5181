"""An upgrade while guests run: what an older version left in the run directory and in the kernel."""
