"""Guests on libvirt's own networks. data/ holds what libvirt 9.0 and 11.3 wrote, as they wrote it."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
