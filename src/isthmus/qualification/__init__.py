"""Proof by machine: lab hosts, guest images, the payload and the demo."""
