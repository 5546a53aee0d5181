"""The ruleset of a person, in few words: what it must be before and after whatever we do."""

RULESET = """\
flush ruleset
table inet filter {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established,related accept
    iifname { "lo", "virbr0" } accept
    meta l4proto { icmp, ipv6-icmp } accept
  }
  chain forward {
    type filter hook forward priority filter; policy drop;
    ct state established,related counter accept
    ct label 100 accept
  }
}
table inet nat {
  map theirs {
    type inet_service : ipv4_addr
    elements = { 9443 : 10.10.0.9 }
  }
  chain prerouting {
    type nat hook prerouting priority dstnat;
    iifname "enp1s0" dnat ip to tcp dport map @theirs
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    iifname "virbr0" oifname { "wlan0", "enp1s0" } masquerade
  }
}
"""
