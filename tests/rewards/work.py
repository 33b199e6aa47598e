"""Work for another process that can go wrong in every way."""

import os
import subprocess
import sys
import time
from typing import Any


def act(request: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked for."""
    match request.get("do"):
        case "raise":
            raise ValueError("no\nsense")
        case "sleep":
            time.sleep(600)
        case "compute":  # one operation of the interpreter, which no signal interrupts
            return {"digits": str(10**10**9)[:1]}
        case "exit":
            os._exit(3)
        case "fill":
            return {"size": len(bytearray(64 << 30))}
        case "environment":
            return {"names": list(os.environ)}
        case "print":
            print('{"process": 1}', flush=True)
            os.write(1, b'{"process": 2}\n')
            subprocess.run(["echo", '{"process": 3}'], check=True)
            return {"process": os.getpid(), "read": sys.stdin.read() + os.read(0, 100).decode()}
        case "much":
            return {"much": "x" * 300_000}
    return {"process": os.getpid()}
