"""The service ``virt-forward watch``: it reacts to events that run no hook.

libvirt_events   metadata edited on a running guest; guests and NICs added and removed; libvirt restarted
kernel_events    the table deleted by another program; neighbours, addresses and default routes changed
prober           guests probed for an address that no source has; DHCP answers received
running_guests   the running guests, and which events affect them
table_check      whether the kernel has the table of the state, and restoring it
table_process    the same in a child process for a large table, which takes long
sync_process     sync in a child process, as libvirt may hang
child            child processes of the service, and what they tell
hook_process     events that hooks hand over, handled in a process with everything loaded
backoff          when failed work is tried again; each failure is logged once
notify           readiness and stopping, for systemd
service          the main loop
"""
