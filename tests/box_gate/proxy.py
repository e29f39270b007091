"""A proxy of the network's in the fake internet: the only one who knows `far.test`. Prints who asked for what."""
import base64, os, socket, sys, threading

FAR, PASSWORD = sys.argv[1], sys.argv[2]
WANTED = "Basic " + base64.b64encode(PASSWORD.encode()).decode()


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def serve(client):
    head = b""
    while b"\r\n\r\n" not in head:
        more = client.recv(1)
        if not more:
            return
        head += more
    lines = head.decode().split("\r\n")
    method, target, _ = lines[0].split(" ")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    print("asked", method, target, flush=True)
    if fields.get("Proxy-Authorization") != WANTED:
        client.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        return client.close()
    name, port = target.rsplit(":", 1)
    if method != "CONNECT" or name not in ("far.test", "other.test"):
        client.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        return client.close()
    server = socket.create_connection((FAR, int(port)))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=pump, args=(server, client), daemon=True).start()
    pump(client, server)


def end_with_the_test():
    sys.stdin.read()
    os._exit(0)


threading.Thread(target=end_with_the_test, daemon=True).start()
listener = socket.create_server(("0.0.0.0", 3128))
print("ready", flush=True)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
