"""The network that can be cut."""

import socket
import threading

import pytest

from ipyfleet_testing.proxy import TcpProxy


@pytest.fixture
def echo():
    """The port of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))
    connections = []

    def answer(connection):
        with connection:
            while data := connection.recv(1000):
                connection.sendall(data)

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(threading.Thread(target=answer, args=(connection,)))
            connections[-1].start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for each in (thread, *connections):
        each.join(10)


def connect(proxy):
    """A connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def is_over(connection):
    """Whether the other end of a connection is gone."""
    try:
        connection.sendall(b"x")
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_what_is_sent_arrives(echo):
    """Bytes pass in both directions."""
    with TcpProxy(echo) as proxy, connect(proxy) as connection:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"hello"


def test_a_killed_proxy_cuts_and_refuses(echo):
    """Connections end, new ones are refused, and after a start everything passes again."""
    with TcpProxy(echo) as proxy:
        with connect(proxy) as connection:
            proxy.kill()
            assert is_over(connection)
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
        proxy.start()
        with connect(proxy) as connection:
            connection.sendall(b"again")
            assert connection.recv(100) == b"again"


def test_a_frozen_proxy_holds_everything_up(echo):
    """Nothing passes while it is frozen; nothing is lost."""
    with TcpProxy(echo) as proxy, connect(proxy) as connection:
        connection.sendall(b"1")
        assert connection.recv(100) == b"1"
        proxy.freeze()
        connection.sendall(b"2")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)
        proxy.thaw()
        connection.settimeout(5)
        assert connection.recv(100) == b"2"
