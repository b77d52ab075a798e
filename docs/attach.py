"""A client of the attach socket in Python's own library: what an engine developer writes in an afternoon, or copies.

    python3 docs/attach.py SOCKET SHARD

prints the shard's SHA-256, taken of the mapped memory, and its tensors.
"""

import hashlib
import json
import mmap
import os
import socket
import sys


class Daemon:
    version = 1  # of the protocol; attach_cuda.py speaks 2

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(path)
        except OSError as error:
            why = error.strerror or error
            raise ConnectionError(f"no daemon hands out weights at {path}: {why}; start vram serve, which prints the path")
        self.hello = self.ask(type="hello", version=self.version)[0]

    def send(self, **message):
        body = json.dumps(message).encode()
        try:
            self.socket.sendall(len(body).to_bytes(4, "little") + body)
        except (BrokenPipeError, ConnectionResetError):
            # The daemon hung up, and said why before: that waits to be read, behind what else it said.
            while True:
                self.receive()

    def receive(self):
        # The descriptor travels with the frame's first byte, so the length must be read with room for one.
        head, files, _, _ = socket.recv_fds(self.socket, 4, 1)
        while 0 < len(head) < 4:
            head += self.socket.recv(4 - len(head))
        if head == b"HTTP":
            raise ConnectionError("this is the control socket, it speaks HTTP: vram serve prints the attach socket, too")
        if not head:
            raise ConnectionError("the daemon is gone: nobody watches what is mapped any more")
        body = memoryview(bytearray(int.from_bytes(head, "little")))
        rest = body
        while rest:
            read = self.socket.recv_into(rest)
            if not read:
                raise ConnectionError("the daemon is gone in the middle of a message")
            rest = rest[read:]
        message = json.loads(bytes(body))
        if message["type"] == "error":
            raise PermissionError(f"{message['code']}: {message['message']}")
        return message, files[0] if files else None

    def ask(self, **message):
        self.send(**message)
        return self.receive()

    def attach(self, shard):
        """The shard's bytes, in place and read-only, and its tensors. The lease ends with the connection."""
        attached, file = self.ask(type="attach", shard=shard)
        tensors, _ = self.receive()
        offset, length = attached["offset"], attached["shard"]["bytes"]
        mapped = mmap.mmap(file, offset + length, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(file)
        return memoryview(mapped)[offset:], tensors["tensors"]


def main(path, shard):
    daemon = Daemon(path)
    weights, tensors = daemon.attach(shard)
    print("sha256", hashlib.sha256(weights).hexdigest())
    for tensor in tensors:
        view = weights[tensor["start"] : tensor["end"]]
        print(tensor["name"], tensor["dtype"], tensor["shape"], len(view))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 attach.py SOCKET SHARD")
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(str(error))
