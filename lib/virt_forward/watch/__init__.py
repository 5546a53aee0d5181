"""The service ``virt-forward watch``: what the hooks cannot see.

libvirt_events   metadata edited on a running guest, guests, NICs and libvirt itself coming and going
kernel_events    the table flushed by somebody, neighbours that come, change and go
seeker           guests asked for the address that nothing tells, and DHCP heard
watched          the running guests, and which of all events matter to them
table_check      a look at the table by itself
syncing          sync in a child process: libvirt may hang
backoff          when what failed is tried again, and that it is told once
notify           readiness, told to systemd
service          the loop that waits for all of these and does what they ask for
"""
