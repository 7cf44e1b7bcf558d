"""The private network of one data directory's engines, and their fixed addresses on it.

It is internal: engines can be reached from this machine and reach nobody. Addresses are fixed, so that a route leads
to the same engine after a crash, a restart of the daemon and a reboot; Docker fixes them only on a network whose
subnet was asked for, so the network is made twice: once to learn which subnet is free here.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from pathlib import Path
from typing import Any

from orchestrator.drivers.docker.daemon import Daemon, NotThere
from orchestrator.drivers.docker.records import HOME
from orchestrator.errors import HostError


class Network:
    """Of one data directory; `name` is the same for all time."""

    def __init__(self, daemon: Daemon, home: Path) -> None:
        self._daemon = daemon
        self._home = home
        self._scope = hashlib.sha256(os.fsencode(home)).hexdigest()[:6]
        self.name = f"orch-{self._scope}"

    def container_name(self, instance: str) -> str:
        """Unique on the daemon, which may have containers of several data directories."""
        return f"{self.name}-{instance}"

    def free_address(self, before: str = "") -> str:
        """An address for one more container, the one that it had `before` if it is still to be had; the network is
        made if it is not there."""
        subnet = self._subnet() or self._make()
        taken = {self._asked(info) for info in self._containers()}
        if before and before not in taken and ipaddress.IPv4Address(before) in subnet:
            return before
        for address in subnet.hosts():
            # The first is the host's own.
            if address != next(subnet.hosts()) and str(address) not in taken:
                return str(address)
        raise HostError(f"The network {self.name} has no address left.", hint="orch down --all")

    def address_of(self, info: dict[str, Any]) -> str:
        """The fixed address of a container, also of a stopped one."""
        return self._asked(info)

    def holds(self, info: dict[str, Any]) -> bool:
        """Whether a container is connected."""
        return self.name in (info["NetworkSettings"].get("Networks") or {})

    def connect(self, info: dict[str, Any]) -> None:
        """Connect a running container again, at an address of its own."""
        if self.holds(info):
            return
        address = self.free_address()
        with self._daemon.api_for("connect a container to its network") as api:
            api.connect_container_to_network(info["Id"], self.name, ipv4_address=address)

    def remove(self) -> None:
        """Remove it when nothing is on it any more."""
        for name in (self.name, f"{self.name}-probe"):
            with contextlib.suppress(NotThere), self._daemon.api_for(f"remove the network {name}") as api:
                api.remove_network(name)

    def _subnet(self) -> ipaddress.IPv4Network | None:
        try:
            with self._daemon.api_for("inspect the network") as api:
                found = api.inspect_network(self.name)
        except NotThere:
            return None
        return ipaddress.IPv4Network(found["IPAM"]["Config"][0]["Subnet"])

    def _make(self) -> ipaddress.IPv4Network:
        labels, probe = {HOME: str(self._home)}, f"{self.name}-probe"
        with contextlib.suppress(NotThere), self._daemon.api_for(f"remove the network {probe}") as api:
            api.remove_network(probe)  # of one that was killed in between
        with self._daemon.api_for(f"make the network {self.name}") as api:
            # Under another name: the final one is for the network that can fix addresses.
            api.create_network(probe, driver="bridge", internal=True, labels=labels)
            subnet = api.inspect_network(probe)["IPAM"]["Config"][0]["Subnet"]
            api.remove_network(probe)
            ipam = {"Driver": "default", "Config": [{"Subnet": subnet}]}
            api.create_network(self.name, driver="bridge", internal=True, labels=labels, ipam=ipam)
        return ipaddress.IPv4Network(subnet)

    def _containers(self) -> list[dict[str, Any]]:
        with self._daemon.api_for("list containers") as api:
            found = api.containers(all=True, filters={"label": f"{HOME}={self._home}"})
            inspected = []
            for entry in found:
                with contextlib.suppress(NotThere), self._daemon.api_for("inspect a container") as inner:
                    inspected.append(inner.inspect_container(entry["Id"]))
        return inspected

    def _asked(self, info: dict[str, Any]) -> str:
        endpoint = (info["NetworkSettings"].get("Networks") or {}).get(self.name) or {}
        return str((endpoint.get("IPAMConfig") or {}).get("IPv4Address") or endpoint.get("IPAddress") or "")
