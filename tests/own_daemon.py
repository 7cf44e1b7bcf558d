"""A dockerd of a test's own, beside the system's: to be killed, restarted, and given other neighbours on its PATH."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from docker import DockerClient
from orch_command import wait_until

# /run/docker is one daemon's: this one has a file system of its own there. Without iptables, so that two daemons do not
# undo each other's rules; containers are reached at their bridge all the same.
SCRIPT = 'mount -t tmpfs none /run/docker && exec "$@"'


class OwnDaemon:
    """Its data, sockets and pid file lie in `home`, a directory with a short path; `host` is its DOCKER_HOST.

    `path` are directories before the others on its PATH, `options` more of its options, `program` another dockerd.
    """

    def __init__(
        self, home: Path, path: Iterable[Path] = (), options: Iterable[str] = (), program: str = "dockerd"
    ) -> None:
        self.home = home
        self.host = f"unix://{home}/sock"
        self.log = home / "log"
        self._path = os.pathsep.join([*map(str, path), os.environ["PATH"]])
        self._options = list(options)
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Why there can be none on this machine; empty when there can."""
        if os.getuid() != 0:
            return "a dockerd of one's own needs root"
        return "" if shutil.which("dockerd") and shutil.which("unshare") else "there is no dockerd here"

    def start(self) -> None:
        """Start it, also again, and wait until it answers."""
        options = ["--data-root", f"{self.home}/data", "--exec-root", f"{self.home}/exec", "-p", f"{self.home}/pid"]
        options += ["-H", self.host, "--bridge=none", "--iptables=false", "--ip-masq=false", *self._options]
        Path("/run/docker").mkdir(exist_ok=True)
        (self.home / "pid").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", SCRIPT, "sh", self._program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"PATH": self._path},
                start_new_session=True,
            )
        try:
            wait_until(self.answers, seconds=60, what="the daemon")
        except AssertionError as error:
            error.add_note(self.log.read_text(errors="replace")[-2000:])
            raise

    def answers(self) -> bool:
        """Whether it does now."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(5)
            try:
                asking.connect(self.host.removeprefix("unix://"))
                asking.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b"200 OK" in asking.recv(1000)
            except OSError:
                return False

    def freeze(self, seconds: float) -> None:
        """Let it do nothing for so long."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: its containers live on, until it starts again."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it ends its containers first."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._process = None
        # Its containerd ends a moment later; a daemon that starts meanwhile takes it for its own, and waits for it.
        pid = self.home / "exec" / "containerd" / "containerd.pid"
        wait_until(lambda: not (pid.exists() and Path(f"/proc/{pid.read_text()}").exists()), what="containerd's end")

    def take(self, names: Iterable[str]) -> None:
        """Copy images from the system's daemon."""
        system, own = DockerClient(base_url="unix:///var/run/docker.sock"), DockerClient(base_url=self.host)
        try:
            for name in names:
                own.images.load(b"".join(system.images.get(name).save(named=True)))
        finally:
            system.close()
            own.close()

    def close(self) -> None:
        """End it with all that it started."""
        if self._process is None:
            self.start()
        client = DockerClient(base_url=self.host)
        for container in client.containers.list(all=True, ignore_removed=True):
            container.remove(force=True)
        for network in client.networks.list(filters={"type": "custom"}):
            network.remove()
        client.close()
        self.stop()
        time.sleep(0.2)
        shutil.rmtree(self.home, ignore_errors=True)
