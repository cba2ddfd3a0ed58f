"""State translation in Xen's migration stream: check it, rewrite single fields, pass the rest on.

What Xen sends has two layers.  ``xl`` writes a header with the guest's configuration, libxl a
stream of records, and one of those (LIBXC_CONTEXT) hands the channel to libxc, whose own image
follows: headers, then records with the guest's memory and its vCPUs' state.  A guest that was born
on another maker's host may carry state that the destination's Xen refuses although it means nothing
there (``data/rules.json``); it is changed in flight.

``walk.py`` is the grammar, without input or output: it asks for bytes, gives bytes, or lets bytes
pass unseen.  ``bodies.py`` and ``hvm_context.py`` check records, ``rules.py`` decides, and
``transport.py`` moves the bytes; page data goes from pipe to pipe inside the kernel.

A rule never changes a length, so nothing before or behind a field has to move.
"""
