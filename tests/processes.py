"""The command in processes of their own, without seconds of imports for each.

A process that starts anew imports torch for three to nine seconds. A fork of the test's process
has it already, and all that counts of a process besides: its own signals, exit code, files, locks.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import traceback

import torch
import torch._dynamo  # which the first optimiser of a process imports: two to five seconds

import hqvae.decode
import hqvae.encode
import hqvae.evaluate
import hqvae.train  # noqa: F401  what commands import when they are called
from hqvae.cli import main
from hqvae.compare.jobs import HQVAE_COMMAND

# Autograd cannot go on in a fork of a process that has used it beside a GPU.
CAN_FORK = hasattr(os, "fork") and not torch.cuda.is_available()


class ForkedCommand:
    """What of `subprocess.Popen` is used here, for commands that begin with HQVAE_COMMAND."""

    def __init__(self, command, stdin=None, stdout=None, stderr=None, env=None, **options):
        assert command[: len(HQVAE_COMMAND)] == HQVAE_COMMAND, command
        self.returncode = None
        self.lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(command[len(HQVAE_COMMAND) :], stdin, stdout, stderr, env, **options)

    def _become(self, words, stdin, stdout, stderr, env, start_new_session=False):
        code = 1
        try:
            if start_new_session:
                os.setsid()
            # The parent may handle these in its own way.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for target, file in ((0, stdin), (1, stdout), (2, stderr)):
                if file == subprocess.DEVNULL:
                    os.dup2(os.open(os.devnull, os.O_RDWR), target)
                elif file is not None:
                    os.dup2(file.fileno(), target)
            os.closerange(3, 4096)  # as exec does: locks of others must not live on in here
            # A fork of a fork drops such streams: they must not close what the new ones write to.
            sys.stdout, sys.stderr = (
                os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
            )
            os.environ.update(env or {})
            code = main(words)
        except BaseException:
            traceback.print_exc()  # and code 1, as the interpreter has it
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self):
        with self.lock:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout=600):
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("a forked command", timeout)
            time.sleep(0.005)
        return self.returncode

    def send_signal(self, number):
        with self.lock:
            if self.returncode is None:
                os.kill(self.pid, number)


Command = ForkedCommand if CAN_FORK else subprocess.Popen


def start(*words, log, group=False):
    """Start `hqvae WORDS`, whose output is kept in the file `log`."""
    with open(log, "ab") as output:
        return Command(
            [*HQVAE_COMMAND, *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(os.environ),
            start_new_session=group,
        )
