"""Proxmox VE: a level as a custom CPU model."""
