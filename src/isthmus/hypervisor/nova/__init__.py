"""OpenStack Nova: a level as its libvirt driver's settings."""
