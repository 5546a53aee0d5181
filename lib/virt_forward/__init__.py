"""virt-forward: port forwarding for libvirt guests that follows the guest."""

__version__ = "0.1.0"
