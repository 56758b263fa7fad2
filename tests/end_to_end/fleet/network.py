"""Network namespaces on one bridge: a machine of its own for each service, as far as the network goes.

Names are resolved as in a compose network: every namespace has its own /etc/hosts. Nothing is routed to the outside.
"""

import ipaddress
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

TOOLS = ("ip", "unshare", "setpriv")
PREFIX = "fleet"
HOSTS = Path("/etc/netns")


def missing() -> str:
    """Why namespaces cannot be made here; empty where they can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    absent = [tool for tool in TOOLS if not shutil.which(tool)]
    if absent:
        return f"{', '.join(absent)} not installed"
    probe = f"{PREFIX}-{os.getpid()}-probe"
    if subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False).returncode != 0:
        return "network namespaces are not allowed here"
    _ip("netns", "delete", probe)
    return ""


class Network:
    """A bridge with a namespace for each of `names`, in a /24 of its own; `close` removes all of it."""

    def __init__(self, names: Sequence[str], here: Sequence[str] = ()) -> None:
        """`here`: further names that mean this side of the bridge, where the program that made it listens."""
        sweep()
        self._bridge = f"{PREFIX}{os.getpid()}"
        subnet = _free_subnet()
        hosts = [str(host) for host in subnet.hosts()]
        self.gateway = hosts[0]
        self._addresses = dict(zip(names, hosts[1:]))
        table = {**self._addresses, **dict.fromkeys(here, self.gateway), "localhost": "127.0.0.1"}
        known = "".join(f"{address} {name}\n" for name, address in table.items())
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"{self.gateway}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for number, (name, address) in enumerate(self._addresses.items()):
            space, link = self._space(name), self._link(number)
            _ip("netns", "add", space)
            _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", link, "master", self._bridge, "up")
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")
            _ip("-n", space, "route", "add", "default", "via", self.gateway)
            (HOSTS / space).mkdir(parents=True, exist_ok=True)
            (HOSTS / space / "hosts").write_text(known)

    def _space(self, name: str) -> str:
        return f"{PREFIX}-{os.getpid()}-{name}"

    def _link(self, number: int) -> str:
        return f"{PREFIX[0]}{os.getpid()}v{number}"

    def address(self, name: str) -> str:
        """The IPv4 address of a namespace."""
        return self._addresses[name]

    def inside(self, name: str) -> list[str]:
        """The words before a command that let it run in a namespace."""
        return ["ip", "netns", "exec", self._space(name)]

    def connect(self, name: str, connected: bool) -> None:
        """Cut a namespace off from all others, without a word to either side; or join it again."""
        link = self._link(list(self._addresses).index(name))
        _ip("link", "set", link, "up" if connected else "down")

    def close(self) -> None:
        """Remove the namespaces and the bridge."""
        for name in self._addresses:
            _remove(self._space(name))
        _ip("link", "delete", self._bridge)


def sweep() -> None:
    """Remove what a program that was killed has left."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    dead = {space for space in listed if space.startswith(f"{PREFIX}-") and not psutil.pid_exists(_owner(space))}
    for space in dead:
        _remove(space)
    for pid in {_owner(space) for space in dead}:
        subprocess.run(["ip", "link", "delete", f"{PREFIX}{pid}"], capture_output=True, check=False)


def _owner(space: str) -> int:
    return int(space.split("-")[1])


def _remove(space: str) -> None:
    _ip("netns", "delete", space)
    shutil.rmtree(HOSTS / space, ignore_errors=True)


def _free_subnet() -> ipaddress.IPv4Network:
    taken = [a.address for nics in psutil.net_if_addrs().values() for a in nics if ":" not in a.address]
    used = {ipaddress.ip_address(address) for address in taken if address.count(".") == 3}
    every = ipaddress.ip_network("10.213.0.0/16").subnets(new_prefix=24)
    return next(net for net in every if isinstance(net, ipaddress.IPv4Network) and not any(a in net for a in used))


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
