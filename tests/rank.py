"""``torchrun -m tests.rank MODULE ARGUMENTS``: runs a module as ``python -m`` does, and leaves without more ado.

While the interpreter shuts down, a thread of gloo's that still lets go of a tensor asks for the GIL, and takes the
process down: "terminate called without an active exception" (pytorch/pytorch#190489). It needs a busy machine.
"""

import os
import runpy
import sys
import traceback


def main() -> None:
    status = 1
    try:
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
