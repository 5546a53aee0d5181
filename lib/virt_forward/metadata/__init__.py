"""libvirt's XML and ours, to frozen values and back. Input is data: nothing in it is trusted."""
