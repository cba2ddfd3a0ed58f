"""The outside placement: QEMU's debug stub stops the guest at its #UD entry, we do the work.

At each stop: read the registers, the exception frame and the instruction, let the core execute it,
then write what changed and resume through an IRETQ.  Traps come in loops, so frame and code are
asked for, in the same write as the registers, where they were at the last trap; a right guess
makes a trap two writes, and a wrong one costs a round trip more.  What was guessed is only ever
*where* to read, never what is there.

A #UD that is not ours goes its way: the guest's own handler runs.  What the instruction itself
would have raised instead (a page fault on its operand, say) is delivered to the guest's handler
for that, as the CPU would have done it.

**When the guest may be resumed.** Only as the answer to a breakpoint's stop (signal 5, QEMU's run
state "debug"), or when our own client says so.  Any other stop (a pause by the operator, QEMU's
own last stop of a move) is never answered: QEMU would take a ``vCont;c`` as an order to run, and
a source that was just moved away would run beside its destination.  QEMU does not report a last
stop that comes while the guest stands in a trap; hence :meth:`Translator.hold` before a
switchover.

A stop by a breakpoint may report a vCPU that is not at the entry: two vCPUs can reach it at once,
then one is reported, and QEMU's request to stop may be taken twice.  The other one is not lost:
when it goes on, the breakpoint stops it again, since QEMU does not step over one by itself.

``translator`` holds, leaves and serves; ``trap`` reads one stop; ``work`` does what the instruction
would have done; ``operand`` is its memory, ``segments`` its mode; ``delivery`` raises exceptions;
``status`` counts; ``lookout`` looks at a guest that runs.
"""

from isthmus.translate.outside.lookout import Lookout
from isthmus.translate.outside.status import TranslatorStatus
from isthmus.translate.outside.translator import Translator

__all__ = ["Lookout", "Translator", "TranslatorStatus"]
