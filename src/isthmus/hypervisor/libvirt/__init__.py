"""libvirt: a level as domain XML."""
