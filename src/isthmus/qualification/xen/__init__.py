"""Emulated hosts with real Xen of both makers, between which real guests move by ``xl migrate``.

Their channel and agent are those of :mod:`isthmus.qualification.kvm`.
"""
