"""What libvirt calls: one event of a guest or a network, from its arguments and XML to an exit status."""
