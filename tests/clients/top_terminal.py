"""`tidegate top` in a terminal: it draws at once, obeys its keys, follows the terminal's size, and leaves all as it was."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

DEADLINE = 15
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    def __init__(self):
        self.ours, self.its = pty.openpty()
        self.resize(24, 80)
        self.before = termios.tcgetattr(self.its)
        self.seen = b""
        self.process = subprocess.Popen(
            [os.environ["TIDEGATE"], "top", "--admin", os.environ["ADMIN_URL"]],
            stdin=self.its, stdout=self.its, stderr=self.its, start_new_session=True,
            env={"TERM": "xterm-256color", "PATH": os.environ["PATH"]},
        )

    def resize(self, rows, columns):
        fcntl.ioctl(self.its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, what, condition):
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}: {self.seen!r}"
            if select.select([self.ours], [], [], 0.05)[0]:
                self.seen += os.read(self.ours, 65536)

    def sees(self, text):
        self.until(text, lambda: text in self.seen)

    def press(self, keys):
        self.seen = b""
        os.write(self.ours, keys)

    def is_given_back(self):
        self.until("its end", lambda: self.process.poll() is not None)
        self.until("the old screen", lambda: LEAVE in self.seen)
        assert termios.tcgetattr(self.its) == self.before, "the terminal's modes are as they were"
        assert b"\x1b[?25h" in self.seen, "the cursor shows again"


def ended_by(what):
    terminal = Terminal()
    terminal.sees(ENTER)
    terminal.sees(b"DATABASE_URL")
    assert termios.tcgetattr(terminal.its) != terminal.before
    what(terminal)
    terminal.is_given_back()
    return terminal.process.returncode


def pool_by_pool(terminal):
    terminal.press(b"\t")
    terminal.sees(b"REDIS_URL")
    terminal.seen = b""
    terminal.resize(10, 40)
    os.kill(terminal.process.pid, signal.SIGWINCH)
    terminal.sees(b"q quit")
    terminal.press(b"jk\x1b[A\x1b[Bq")


assert ended_by(pool_by_pool) == 0
assert ended_by(lambda terminal: terminal.press(b"\x03")) == 0
assert ended_by(lambda terminal: terminal.press(b"\x1b")) == 0
assert ended_by(lambda terminal: terminal.process.send_signal(signal.SIGTERM)) == 0
print("well")
