"""Plays the service manager: opens sockets as ListenStream= would, and becomes the program, to which they are passed.

Arguments: one KIND=WHERE for each socket, `--`, the program and its arguments. KIND is tcp, unix, udp, file or idle (a stream
socket that does not listen); WHERE is NAME@PLACE, or PLACE for a socket without a name.
"""

import os
import socket
import sys

FIRST = 3


def opened(kind, place):
    if kind == "file":
        return os.open(place, os.O_RDONLY)
    if kind == "unix":
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.bind(place)
    else:
        host, port = place.rsplit(":", 1)
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind((host, int(port)))
    if kind in ("tcp", "unix"):
        one.listen(64)
    return one.detach()


def main():
    at = sys.argv.index("--")
    names, files = [], []
    for word in sys.argv[1:at]:
        kind, where = word.split("=", 1)
        name, _, place = where.rpartition("@")
        names.append(name)
        # Out of the way of the numbers that they get.
        files.append(os.dup2(opened(kind, place), 100 + len(files)))
    for number, file in enumerate(files, FIRST):
        os.dup2(file, number, inheritable=True)
        os.close(file)
    os.environ["LISTEN_FDS"] = str(len(files))
    os.environ["LISTEN_PID"] = str(os.getpid())
    if any(names):
        os.environ["LISTEN_FDNAMES"] = ":".join(names)
    command = sys.argv[at + 1 :]
    os.execv(command[0], command)


main()
