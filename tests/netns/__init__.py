"""Tests by packets: real hooks, real nft, real payloads, in network namespaces."""
