"""The TCP and UDP doors of every address: TLS, HTTP or an echo, by what the client says first."""

import socket
import threading
import time

import netlog
import nameserver
import tls
import web

GREETINGS = {22: b"SSH-2.0-world\r\n"}
METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"TRACE ", b"PRI ")
HELLO_WAIT = 10.0


class Doors:
    """Listens on every address at once; whom the client meant is read from the connection."""

    def __init__(self, config, log, authority, site):
        self._config = config
        self._log = log
        self._authority = authority
        self._site = site

    def start(self):
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            for port in self._config["tcp_ports"]:
                listener = socket.socket(family, socket.SOCK_STREAM)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((any_address, port))
                listener.listen(1024)
                threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            for port in self._config["udp_ports"]:
                sink = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET:
                    sink.setsockopt(socket.IPPROTO_IP, nameserver.IP_PKTINFO, 1)
                else:
                    sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                    sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                sink.bind((any_address, port))
                threading.Thread(target=self._udp, args=(sink, family, port), daemon=True).start()

    def _udp(self, sink, family, port):
        while True:
            data, ancillary, _, peer = sink.recvmsg(65535, 256)
            address, reply = nameserver.destination(ancillary, family)
            self._log.write("udp", local=address, local_port=port, peer=netlog.plain(peer[0]), peer_port=peer[1],
                            size=len(data), data=netlog.text(data))
            try:
                sink.sendmsg([f"token-{address}-udp {port}: ".encode() + data[:1024]], reply, 0, peer)
            except OSError:
                pass

    def _accept(self, listener):
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=self._serve, args=(connection, peer), daemon=True).start()

    def _serve(self, connection, peer):
        local = connection.getsockname()
        ends = {"local": netlog.plain(local[0]), "local_port": local[1],
                "peer": netlog.plain(peer[0]), "peer_port": peer[1]}
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._log.write("tcp", event="connect", **ends)
                if ends["local_port"] in GREETINGS:
                    connection.sendall(GREETINGS[ends["local_port"]])
                first = connection.recv(8, socket.MSG_PEEK)
                if not first:
                    self._log.write("tcp", event="close", received=0, data="", **ends)
                elif first[0] == 0x16:
                    self._tls(connection, ends)
                elif first.startswith(tuple(method[: len(first)] for method in METHODS)):
                    self._site.serve(web.Connection(connection, ends, None))
                else:
                    self._echo(connection, ends)
        except (OSError, ValueError, IndexError) as error:  # ssl.SSLError is an OSError
            self._log.write("tcp", event="error", error=str(error), **ends)

    def _tls(self, connection, ends):
        record = peek_record(connection)
        hello = tls.client_hello(record) or {"sni": None, "alpn": [], "ech": False, "raw": record[:512].hex()}
        self._log.write("tls", **ends, **hello)
        context = self._authority.context(hello["sni"] or ends["local"])
        with context.wrap_socket(connection, server_side=True) as secure:
            first = secure.recv(8192)
            if first.startswith(METHODS):
                self._site.serve(web.Connection(secure, ends, hello, first))
            elif first:
                self._echo(secure, ends, first)

    def _echo(self, connection, ends, first=b""):
        """Sends back what comes, after a token that proves which server it was; logs the first 64 KiB."""
        token = f"token-{ends['local']}-tcp\n".encode()
        kept, received, data = b"", 0, first
        greeted = False
        try:
            while True:
                data = data or connection.recv(65536)
                if not data:
                    break
                received += len(data)
                if len(kept) < 65536:
                    kept += data[: 65536 - len(kept)]
                self._log.write("tcp", event="data", data=netlog.text(data, 4096), **ends)
                connection.sendall(data if greeted else token + data)
                greeted, data = True, b""
        finally:
            self._log.write("tcp", event="close", received=received, data=netlog.text(kept), **ends)


def peek_record(connection):
    """The client's whole first TLS record without taking it from the socket, or what came of it in time."""
    until = time.monotonic() + HELLO_WAIT
    seen = b""
    while time.monotonic() < until:
        peeked = connection.recv(65536, socket.MSG_PEEK)
        if len(peeked) >= 5 and len(peeked) >= 5 + int.from_bytes(peeked[3:5], "big"):
            return peeked
        if peeked == seen:
            time.sleep(0.002)  # MSG_PEEK has no "wait for more"
        seen = peeked
    return seen
