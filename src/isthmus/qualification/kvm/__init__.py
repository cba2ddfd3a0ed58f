"""Hosts with real KVM on a machine without hardware virtualisation: emulated machines.

QEMU's emulation has AMD's SVM: a Linux kernel in it loads ``kvm_amd``.  In such a *lab host* runs
the distribution's own QEMU with ``accel=kvm``, and in that a guest of Isthmus.  A lab host looks to
the rest of Isthmus like any other: see :mod:`isthmus.qualification.kvm.remote`.
"""
