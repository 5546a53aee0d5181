"""Asking libvirt, by libvirt-python. Never imported by a hook: calling libvirt from one deadlocks."""
