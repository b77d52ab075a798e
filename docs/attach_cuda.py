"""A client of the attach socket for shards in a GPU's memory, in Python's own library and libcuda. Beside attach.py.

    python3 docs/attach_cuda.py SOCKET SHARD

prints the GPU, the shard's SHA-256, taken of a copy of the mapped memory, and its tensors. The daemon hands out such a shard
only where its operator trusts its clients ([attach] gpu = "trust-clients"): the descriptor would allow writing, and this
client maps it for reading only.
"""

import ctypes
import hashlib
import os
import sys

from attach import Daemon as HostDaemon

READ = 1  # CU_MEM_ACCESS_FLAGS_PROT_READ
POSIX_FD = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
PIECE = 64 << 20


class Access(ctypes.Structure):  # CUmemAccessDesc: a device, by type and number, and what it may do
    _fields_ = [("type", ctypes.c_int), ("id", ctypes.c_int), ("flags", ctypes.c_int)]


class Driver:
    def __init__(self):
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise OSError(f"NVIDIA's driver cannot be loaded: {error}; install it, or show it to this container")
        self("cuInit", 0)

    def __call__(self, name, *arguments):
        """A call of the driver; numbers that are no pointers are handed over as 64 bits."""
        plain = [ctypes.c_uint64(value) if isinstance(value, int) else value for value in arguments]
        try:
            answer = self.library[name](*plain)
        except AttributeError:
            raise OSError(f"this driver has no {name}; update it")
        if answer:
            raise OSError(f"{name} answered {answer}; see CUresult in NVIDIA's documentation of the driver")

    def get(self, name, *arguments, of=ctypes.c_uint64):
        value = of()
        self(name, ctypes.byref(value), *arguments)
        return value.value

    def find(self, uuid):
        """The number that this process has for the GPU with that UUID: not the daemon's, where CUDA_VISIBLE_DEVICES differ."""
        for number in range(self.get("cuDeviceGetCount", of=ctypes.c_int)):
            device, found = self.get("cuDeviceGet", number, of=ctypes.c_int), (ctypes.c_ubyte * 16)()
            self("cuDeviceGetUuid_v2", found, device)
            if bytes(found).hex() == uuid.replace("-", ""):
                return device
        raise OSError(f"this process is shown no GPU {uuid}; see CUDA_VISIBLE_DEVICES and the container's devices")


class Mapped:
    """A shard's memory, mapped for reading only in the GPU's primary context, which frameworks use too, until `close`.

    It keeps the connection, with which the lease ends: dropping it without `close` gives the lease up before the mapping."""

    access = READ

    def __init__(self, daemon, driver, file, attached):
        self.daemon, self.driver, self.undo, self.shape = daemon, driver, [], (attached["shard"]["bytes"],)
        try:
            self.map(file, attached["device"], attached["allocation_bytes"], attached["offset"])
        except OSError:
            self.close()
            raise
        finally:
            os.close(file)

    def map(self, file, uuid, size, offset):
        driver = self.driver
        if offset + self.shape[0] > size:
            raise OSError(f"the daemon offers {size} bytes for {self.shape[0]} at {offset}; report this defect")
        self.device = driver.find(uuid)
        self.context = driver.get("cuDevicePrimaryCtxRetain", self.device)
        self.undo.append(("cuDevicePrimaryCtxRelease_v2", self.device))
        driver("cuCtxPushCurrent_v2", self.context)
        self.undo.append(("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_uint64())))
        memory = driver.get("cuMemImportFromShareableHandle", file, POSIX_FD)
        self.undo.append(("cuMemRelease", memory))
        start = driver.get("cuMemAddressReserve", size, 0, 0, 0)
        self.undo.append(("cuMemAddressFree", start, size))
        driver("cuMemMap", start, size, 0, memory, 0)
        self.undo.append(("cuMemUnmap", start, size))
        access = Access(1, self.device, self.access)
        driver("cuMemSetAccess", start, size, ctypes.byref(access), 1)
        if driver.get("cuMemGetAccess", ctypes.byref(access), start) != self.access:
            raise OSError("this driver does not map another process's memory for reading only; update it")
        self.pointer = start + offset

    @property
    def __cuda_array_interface__(self):
        """For frameworks: the bytes, not to be written to. Make views of the tensors from it."""
        return {"shape": self.shape, "typestr": "|u1", "data": (self.pointer, True), "version": 3}

    def pieces(self):
        """The bytes, copied to main memory piece by piece."""
        for start in range(0, self.shape[0], PIECE):
            piece = ctypes.create_string_buffer(min(PIECE, self.shape[0] - start))
            self.driver("cuMemcpyDtoH_v2", piece, self.pointer + start, len(piece))
            yield piece.raw

    def close(self):
        """Unmaps it, and gives the lease back. On the thread that made it, once the GPU has done its work on it."""
        while self.undo:
            self.driver(*self.undo.pop())
        self.daemon.socket.close()


class Daemon(HostDaemon):
    version = 2

    def attach(self, shard, mapped=Mapped):
        """The shard, mapped, and its tensors: one for each connection, with which the lease ends."""
        driver = Driver()  # First: from the moment that a descriptor leaves, the daemon calls the shard's protection advisory.
        attached, file = self.ask(type="attach-cuda", shard=shard)
        if file is None:
            raise OSError("the daemon sent no descriptor; report this defect")
        try:
            tensors, _ = self.receive()
        except OSError:
            os.close(file)
            raise
        return mapped(self, driver, file, attached), attached, tensors["tensors"]


def main(path, shard):
    weights, attached, tensors = Daemon(path).attach(shard)
    digest = hashlib.sha256()
    for piece in weights.pieces():
        digest.update(piece)
    print("gpu", attached["device"], "is", weights.device, "here")
    print("sha256", digest.hexdigest())
    for tensor in tensors:
        print(tensor["name"], tensor["dtype"], tensor["shape"], tensor["end"] - tensor["start"])
    weights.close()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 attach_cuda.py SOCKET SHARD")
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(str(error))
