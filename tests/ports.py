"""Free ports, for servers that tests start and for addresses without a server."""

import socket


def free_ports(count: int) -> list[int]:
    """Return different ports on which no process listens now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def free_port() -> int:
    """Return one port on which no process listens now."""
    return free_ports(1)[0]
