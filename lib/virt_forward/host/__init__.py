"""The edge to the host: each module is the only caller of its program or file system."""
