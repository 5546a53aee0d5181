"""The test lab: namespaces, guests and hosts that real payloads travel through."""
