"""What libnbd's client finds of an export's semantics: semantics.py CHECK URI. Prints "held" when all of it holds."""
import errno
import sys

import nbd

MIB = 1 << 20


def connect(uri, structured=True, context=False):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if context:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    h.set_strict_mode(0)  # the server is asked what the library would refuse by itself
    return h


def pattern(length, seed):
    return bytes((seed + i * 7 + (i >> 8)) & 0xFF for i in range(length))


def refused(expected, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == expected, (errno.errorcode.get(e.errnum), errno.errorcode[expected])
        return
    raise AssertionError("not refused with " + errno.errorcode[expected])


def chunks(h, count, offset, flags=0):
    found = []

    def on_chunk(data, at, status, error):
        assert error.value == 0
        found.append((at, len(data), status, bytes(data)))

    h.pread_structured(count, offset, on_chunk, flags)
    return found


def extents(h, count, offset, flags=0):
    found = []

    def on_extents(context, at, entries, error):
        assert context == "base:allocation" and at == offset and error.value == 0
        found.append(list(zip(entries[0::2], entries[1::2])))

    h.block_status(count, offset, on_extents, flags)
    assert len(found) == 1  # one chunk per context
    return found[0]


def structured(uri):
    h = connect(uri)
    assert h.get_structured_replies_negotiated() and h.can_df()
    h.pwrite(pattern(8192, 1), 64 * 1024)
    found = sorted(chunks(h, 128 * 1024, 0))
    assert [(at, n, s) for at, n, s, _ in found] == [
        (0, 64 * 1024, nbd.READ_HOLE), (64 * 1024, 8192, nbd.READ_DATA), (72 * 1024, 56 * 1024, nbd.READ_HOLE)], found[:1]
    assert found[1][3] == pattern(8192, 1)
    one = chunks(h, 128 * 1024, 0, nbd.CMD_FLAG_DF)
    assert len(one) == 1 and one[0][:3] == (0, 128 * 1024, nbd.READ_DATA)
    assert one[0][3] == bytes(64 * 1024) + pattern(8192, 1) + bytes(56 * 1024)
    simple = connect(uri, structured=False)
    assert not simple.get_structured_replies_negotiated() and not simple.can_df()
    assert simple.pread(8192, 64 * 1024) == pattern(8192, 1)
    refused(errno.EINVAL, lambda: simple.pread(512, h.get_size()))


def status(uri):
    h = connect(uri, context=True)
    assert h.can_meta_context("base:allocation")
    size = h.get_size()
    assert extents(h, size, 0) == [(size, 3)]
    h.pwrite(pattern(4096, 2), MIB)
    h.pwrite(pattern(4096, 2), 3 * MIB)
    h.zero(4096, 5 * MIB, nbd.CMD_FLAG_NO_HOLE)
    assert extents(h, 2 * MIB, 0) == [(MIB, 3), (4096, 0), (MIB - 4096, 3)]
    assert extents(h, 2 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(MIB, 3)]
    assert extents(h, 100, MIB + 50, nbd.CMD_FLAG_REQ_ONE) == [(100, 0)]  # clipped to the request
    no_hole = extents(h, 4096, 5 * MIB)
    assert len(no_hole) == 1 and not no_hole[0][1] & 1, no_hole  # allocated
    at, runs = 0, []
    while at < size:
        for length, kind in extents(h, size - at, at):
            runs.append((at, length, kind))
            at += length
    assert at == size
    for start, length, kind in runs:
        data = h.pread(min(length, MIB), start)
        assert not kind & 2 or not any(data)
    h.trim(4096, MIB)
    assert extents(h, 2 * MIB, 0) == [(2 * MIB, 3)]
    refused(errno.EINVAL, lambda: extents(h, 4096, size))
    refused(errno.EINVAL, lambda: extents(h, size, 4096))
    refused(errno.EINVAL, lambda: connect(uri).block_status(4096, 0, lambda *a: 0))


def disorder(uri):
    h = connect(uri)
    h.pwrite(pattern(MIB, 3), 0)
    order, tasks = [], []
    for i in range(200):
        def done(error, i=i):
            assert error.value == 0
            order.append(i)
            return 1
        if i % 4 == 0:
            tasks.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(pattern(MIB, i))), 2 * MIB + i * 4096, completion=done))
        else:
            tasks.append(h.aio_pread(nbd.Buffer(512), (i * 4096) % MIB, completion=done))
    while len(order) < len(tasks):
        assert h.poll(30000) > 0
    assert sorted(order) == list(range(200))
    assert order != sorted(order), "small reads never passed large writes"


def coherent(uri):
    write, flush, read = connect(uri), connect(uri), connect(uri)
    assert write.can_multi_conn()
    for i in range(50):
        data = pattern(5000, i)
        write.pwrite(data, i * 3333)
        flush.flush()
        assert read.pread(5000, i * 3333) == data
        read.trim(4096, 8 * MIB)
        write.pwrite(pattern(4096, i), 8 * MIB, nbd.CMD_FLAG_FUA)
        assert flush.pread(4096, 8 * MIB) == pattern(4096, i)


def changes(uri):
    h = connect(uri, context=True)
    assert all([h.can_fua(), h.can_flush(), h.can_trim(), h.can_zero(), h.can_fast_zero(), h.can_cache()])
    h.pwrite(pattern(MIB, 4), 0, nbd.CMD_FLAG_FUA)
    h.zero(5000, 1000, nbd.CMD_FLAG_FUA)
    assert h.pread(MIB, 0) == pattern(MIB, 4)[:1000] + bytes(5000) + pattern(MIB, 4)[6000:]
    h.trim(65536, 65536, nbd.CMD_FLAG_FUA)
    assert h.pread(65536, 65536) == bytes(65536)
    h.zero(65536, 131072, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    assert h.pread(65536, 131072) == bytes(65536)
    assert not extents(h, 65536, 131072)[0][1] & 1
    try:
        h.zero(65536, 262144, nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(65536, 262144) == bytes(65536)
    except nbd.Error as e:
        assert e.errnum == errno.ENOTSUP
        assert h.pread(65536, 262144) == pattern(MIB, 4)[262144:327680]
    h.cache(MIB, 0)
    h.cache(1, h.get_size() - 1)
    h.flush()
    h.flush()


def sizes(uri):
    h = connect(uri)
    size = h.get_size()
    assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB and h.get_block_size(nbd.SIZE_MINIMUM) == 1
    large = pattern(4096, 5) * (32 * MIB // 4096)
    h.pwrite(large, 12345)
    assert h.pread(32 * MIB, 12345) == large
    refused(errno.EINVAL, lambda: h.pread(32 * MIB + 1, 0))
    model = bytearray(h.pread(MIB, 0))
    for at in (0, 1, 511, 512, 4095, 4096, 4097, 65535, 500000):
        for n in (1, 2, 511, 512, 513, 4095, 4096, 4097, 8191, 65537):
            data = pattern(n, at + n)
            h.pwrite(data, at)
            model[at:at + n] = data
            assert h.pread(n, at) == data
    assert h.pread(MIB, 0) == model
    h.pwrite(b"e", size - 1)
    assert h.pread(1, size - 1) == b"e"


def errors(uri):
    h = connect(uri)
    size = h.get_size()
    for call in (lambda: h.pread(512, size), lambda: h.pread(2, size - 1), lambda: h.pread(512, 1 << 63),
                 lambda: h.trim(4096, size), lambda: h.cache(4096, size), lambda: h.pread(512, 0, 1 << 4)):
        refused(errno.EINVAL, call)
    for call in (lambda: h.pwrite(b"xx", size - 1), lambda: h.pwrite(bytes(512), 1 << 63), lambda: h.zero(2, size - 1)):
        refused(errno.ENOSPC, call)
    assert h.pread(512, 0) == bytes(512)  # the session lives, in step


def full(uri):
    """A store that is smaller than its volume: ENOSPC, and what was acknowledged stays."""
    h = connect(uri)
    written = 0
    try:
        while written < h.get_size():
            h.pwrite(pattern(4096, written >> 20) * 256, written)
            written += MIB
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
    assert 0 < written < h.get_size()
    for at in range(0, written, 16 * MIB):
        assert h.pread(MIB, at) == pattern(4096, at >> 20) * 256, at
    h.flush()
    h.trim(16 * MIB, 0)
    h.flush()
    h.pwrite(pattern(4096, 9), 0)  # room again
    assert h.pread(4096, 0) == pattern(4096, 9)


def readonly(uri):
    h = connect(uri)
    assert h.is_read_only()
    for call in (lambda: h.pwrite(bytes(512), 0), lambda: h.zero(512, 0), lambda: h.trim(4096, 0)):
        refused(errno.EPERM, call)
    assert h.pread(512, 0) == bytes(512)
    h.flush()


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
    print("held")
