"""Stands in for a command: has a fork of zygote.py run it, with this process's folder, environment and streams.

ask.py SOCKET MODULE [arguments]
"""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as zygote:
    zygote.connect(sys.argv[1])
    socket.send_fds(zygote, [b"+"], [0, 1, 2])
    job = {"argv": sys.argv[2:], "cwd": os.getcwd(), "environment": dict(os.environ)}
    zygote.sendall(json.dumps(job).encode() + b"\n")
    sys.exit(int(zygote.makefile("rb").readline() or 1))
