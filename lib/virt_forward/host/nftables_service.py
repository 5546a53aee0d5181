"""nftables.service, which loads the person's ruleset."""

import os

RULESETS = ("/etc/sysconfig/nftables.conf", "/etc/nftables.conf")
"""The ruleset that it loads: the first on Fedora and derivatives, the second elsewhere."""


def ruleset_path() -> str:
    """Return the path of the ruleset; the usual one where there is none."""
    return next(filter(os.path.exists, RULESETS), RULESETS[-1])
