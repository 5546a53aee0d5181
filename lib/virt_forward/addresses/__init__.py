"""Where a guest's address can be learned from: one module a source, each a pure function.

networkd          static leases and subnets in systemd-networkd's .network files
leases            what networkd's and libvirt's DHCP servers have given out
neighbours        the kernel's neighbour table
resolve           all sources in their order, to the seats of a guest
"""
