"""The failures of moves between makers, reproduced and cured on lab hosts with real KVM.

Each failure is a module ``failure_N_SUBJECT.py`` with one :class:`~.case.Case` named ``CASE``; the
registry finds it by the name of its file.  A case gets a :class:`~.bench.Bench`, on which its hosts
are up, does what it has to do, and returns what it saw, part by part: dead without help, alive
levelled, alive translated.  Nothing is said there that was not seen in that run.
"""
