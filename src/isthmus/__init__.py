"""Isthmus: live migration of virtual machines between Intel and AMD servers, there and back.

The folders are the parts of the design; imports point one way:
``cpu`` <- ``baseline``, ``divergence``, ``scan`` <- ``translate``, ``hypervisor``, ``migration``
<- ``fleet``, ``qualification`` <- ``cli``, ``web``.  ARCHITECTURE.md is the map.
"""

__version__ = "0.1.0"
