"""Finding a guest's addresses. All modules are pure: the host's facts come in as values.

networkd          static leases and subnets in systemd-networkd's .network files
leases            the leases of networkd's and libvirt's DHCP servers, and the neighbour table
attachments       the NICs of a guest that are on a bridge of the host
endpoints         the addresses of the NICs, from all sources in order of trust
probe             ARP and ICMPv6 requests for an address that no source has, and their answers
resolve           from a domain and the host's facts to a guest
explain           why a forward has no endpoint
"""
