"""Cloud Hypervisor: a level as its arguments, where they can honour it."""
