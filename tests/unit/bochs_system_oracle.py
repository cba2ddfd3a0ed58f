"""The emulation core beside Bochs' CPU (Sapphire Rapids), for test_core_system.py.

``bochs_system_oracle.py SEED CASES`` prints one JSON line: cases and mismatches by name.
Waits get a deadline long past: Bochs would sleep for any other. Its TPAUSE crashes in this package.
"""

import json
import os
import random
import sys
from collections import Counter

from bochs_oracle import GENERAL, Bochs, NoMemory, machine_with

CODES = {"SERIALIZE": "0f01e8", "UMWAIT": "f20faef1", "RDPID": "f30fc7fa"}
STATUS = 0x8D5


def main() -> None:
    rng, bochs = random.Random(int(sys.argv[1])), Bochs()
    tried: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for name, text in CODES.items():
        code = bytes.fromhex(text)
        for _ in range(int(sys.argv[2])):
            general = {register: rng.getrandbits(64) for register in GENERAL}
            if name == "UMWAIT":
                general |= {"rax": 0, "rdx": 0}
                general["rcx"] = rng.choice([0, 1, 2, 3, rng.getrandbits(64)])
            theirs = bochs.run(code, 1, general, [[0] * 4] * 16)
            ours = machine_with(general, [[0] * 4] * 16)
            kind = ours.execute(code, NoMemory())
            tried[name] += 1
            if theirs is None:
                wrong[name] += kind.name != "FAULT" or ours.outcome.vector != 13
            else:
                wrong[name] += (
                    kind.name != "DONE"
                    or [ours.state.gpr[n] for n in range(16)]
                    != [getattr(theirs, r) for r in GENERAL]
                    or bool((ours.state.rflags ^ theirs.rflags) & STATUS)
                    or ours.state.rip != theirs.rip - bochs.place(code)
                )
    print(json.dumps({"tried": tried, "wrong": +wrong}), flush=True)
    os._exit(0)  # the package crashes as it is taken down


if __name__ == "__main__":
    main()
