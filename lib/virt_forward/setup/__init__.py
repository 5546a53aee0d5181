"""Setting up a bridge for guests (``virt-forward init``): from the host's facts to files and lines to add.

facts     what the host has
options   what the person asks for
choose    names and addresses that nothing on the host uses
routed    the bridge with NAT: networkd's files, forwarding
lan       a bridge with a wired NIC in it
rules     the lines of the person's nftables ruleset
"""
