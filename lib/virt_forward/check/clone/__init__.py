"""The clone: a copy of the host in a throwaway network namespace, in which probes are followed.

host_state    the host's links, routes, sysctls and rulesets as values (pure); read_host reads them
probes        which packets are sent, for each forward (pure)
plan          how the clone is built, as commands (pure)
tables        the rulesets as loadable text (pure)
packets       probe packets, and what comes back (pure)
trace         the kernel's trace messages (pure)
verdict       what stopped a probe (pure)
namespace     a process in namespaces of its own
session       the clone is built, loaded and probed
run           all of it
"""
