"""Lab: guest images and emulated hosts on one machine."""
