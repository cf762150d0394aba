"""`tidegate run` at a terminal, below a shell: what is typed reaches the command, and keys do what they do without tidegate."""

import os
import pty
import select
import time

DEADLINE = 15


class Shell:
    def __init__(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "$ ", "TIDEGATE_LOG": "off",
                           "TIDEGATE_ADMIN_LISTEN": "127.0.0.1:0", "T": os.environ["TIDEGATE"]}
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
        self.seen = b""

    def type(self, text):
        self.seen = b""
        os.write(self.terminal, text.encode())

    def sees(self, text, nudge=b""):
        deadline = time.monotonic() + DEADLINE
        while text.encode() not in self.seen:
            os.write(self.terminal, nudge)
            assert time.monotonic() < deadline, f"waited in vain for {text!r}: {self.seen!r}"
            if select.select([self.terminal], [], [], 0.05)[0]:
                self.seen += os.read(self.terminal, 65536)

    def learns(self, text):
        """A shell tells of its jobs before a prompt."""
        self.sees(text, b"\n")

    def ended_with(self, code):
        """Asks the shell; what it is asked must not be mistaken for its answer."""
        self.type("echo rc:$?.\n")
        self.sees(f"rc:{code}.")


shell = Shell()

# The command reads what is typed.
shell.type("""$T run -- sh -c 'echo rea""dy; read x; echo "got<$x>"; exit 3'\n""")
shell.sees("ready")
shell.type("hello\n")
shell.sees("got<hello>")
shell.ended_with(3)

# Ctrl-C comes once, from the terminal; what the command makes of it counts.
shell.type("""$T run -- bash -c 'trap "echo interr""upted" INT; echo rea""dy; for i in 1 2 3 4 5 6; do sleep 0.1; done; exit 5'\n""")
shell.sees("ready")
os.write(shell.terminal, b"\x03")
shell.sees("interrupted")
shell.ended_with(5)
assert shell.seen.count(b"interrupted") <= 1, shell.seen

# By default it ends the command, and the shell hears of the signal itself.
shell.type("""$T run -- sh -c 'echo rea""dy; exec sleep 100'\n""")
shell.sees("ready")
os.write(shell.terminal, b"\x03")
shell.ended_with(130)

# Ctrl-\ likewise.
shell.type("""ulimit -c 0; $T run -- sh -c 'echo rea""dy; exec sleep 100'\n""")
shell.sees("ready")
os.write(shell.terminal, b"\x1c")
shell.sees("Quit")
shell.ended_with(131)

# Ctrl-Z stops both, fg lets both go on, and the command has the terminal again.
shell.type("""$T run -- sh -c 'echo rea""dy; exec cat'\n""")
shell.sees("ready")
os.write(shell.terminal, b"\x1a")
shell.sees("Stopped")
shell.ended_with(148)
shell.type("fg\n")
shell.sees("exec cat")
shell.type("once more\n")
shell.sees("once more\r\nonce more")
os.write(shell.terminal, b"\x04")
shell.ended_with(0)

# In the background the command may not read: both stop until they are brought back.
shell.type("""$T run -- sh -c 'read x; echo "got<$x>"' &\n""")
shell.learns("Stopped")
shell.type("fg\n")
shell.sees("read x")
shell.type("late\n")
shell.sees("got<late>")
shell.ended_with(0)

shell.type("exit\n")
_, status = os.waitpid(shell.pid, 0)
assert os.waitstatus_to_exitcode(status) == 0
print("well")
