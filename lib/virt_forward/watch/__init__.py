"""The service ``virt-forward watch``: what the hooks cannot see.

libvirt_events   metadata edited on a running guest, guests, NICs and libvirt itself coming and going
kernel_events    the table flushed by somebody, a guest's address learned by the kernel
notify           readiness, told to systemd
service          the loop that waits for all of these and does what they ask for
"""
