"""Where a guest's address can be learned from: one module a source, each a pure function.

networkd          static leases and subnets in systemd-networkd's .network files
leases            what networkd's and libvirt's DHCP servers have given out
neighbours        the kernel's neighbour table
attachments       the NICs that are on a bridge of the host
endpoints         all sources in their order, to the addresses of a guest's NICs
resolve           a domain and the host's facts to a guest
"""
