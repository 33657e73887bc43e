using System.Buffers;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A file or block device, past the page cache where the filesystem allows it. Opened from any thread; requests live on
/// its loop. Owns its descriptor until <see cref="Close"/>.
/// </summary>
public sealed class DiskFile : IFile
{
    private const int BouncePieceBytes = 1 << 20;

    private readonly KernelLoop _loop;
    private int _fd;
    private int _inFlight;
    private ulong _answered;
    private bool _isClosed;

    private DiskFile(KernelLoop loop, int fd, string path, ulong sizeBytes, bool isBlockDevice, bool isDirect, string? warning)
    {
        IsInMemory = !isBlockDevice && LiesInMemory(fd);
        _loop = loop;
        _fd = fd;
        Path = path;
        SizeBytes = sizeBytes;
        IsBlockDevice = isBlockDevice;
        IsDirect = isDirect;
        Warning = warning;
    }

    /// <inheritdoc/>
    public ulong SizeBytes { get; }

    /// <summary>The path as it was given.</summary>
    public string Path { get; }

    /// <summary>A block device rather than a file.</summary>
    public bool IsBlockDevice { get; }

    /// <summary>Opened with O_DIRECT.</summary>
    public bool IsDirect { get; }

    /// <summary>On tmpfs or ramfs. Neither ever waits for a device, and an io_uring hands their requests to a worker thread,
    /// which costs more than the copy: so they are read and written in place, on the loop.</summary>
    public bool IsInMemory { get; }

    /// <summary>What a person should know about how it was opened; null when nothing.</summary>
    public string? Warning { get; }

    /// <summary>Requests that were answered. May be read from any thread.</summary>
    public ulong Answered => Volatile.Read(ref _answered);

    /// <summary>Requests are under way. May be read from any thread.</summary>
    public bool IsBusy => Volatile.Read(ref _inFlight) > 0;

    /// <summary>errno of the last failed request; 0 when none failed.</summary>
    public int LastErrno { get; private set; }

    /// <summary>The last failed request in words; null when none failed.</summary>
    public string? LastError { get; private set; }

    /// <summary>Makes a new file whose blocks are all reserved. Throws <see cref="IOException"/> when it exists or does not
    /// fit; nothing is left behind then. Blocks: not on a loop.</summary>
    public static void Create(string path, ulong sizeBytes)
    {
        Check.That(sizeBytes > 0 && sizeBytes % Units.BlockBytes == 0);
        int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0x180 /* 0600 */);
        if (fd < 0) throw Failure("create", path, Errno);
        int error = fallocate(fd, 0, 0, (long)sizeBytes) == 0 ? 0 : Errno;
        if (error == 0 && fsync(fd) != 0) error = Errno;
        close(fd);
        if (error == 0) return;
        File.Delete(path);
        throw Failure("preallocate", path, error);
    }

    /// <summary>Makes the names in a directory durable (a file that was just made or renamed there). Throws
    /// <see cref="IOException"/>. Blocks: not on a loop.</summary>
    public static void SyncDirectory(string path)
    {
        int fd = open(path, O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0) throw Failure("open", path, Errno);
        int error = fsync(fd) == 0 ? 0 : Errno;
        close(fd);
        if (error != 0) throw Failure("sync", path, error);
    }

    /// <summary>
    /// Opens a file or block device. <paramref name="exclusive"/>: refused while another process holds it so (flock; O_EXCL
    /// too on a block device), which is waited for a moment (<see cref="FileLock"/>). <paramref name="cached"/>: through the page cache, for writes that a flush follows.
    /// Throws <see cref="IOException"/> with a readable reason. Blocks: not on a loop.
    /// </summary>
    public static DiskFile Open(KernelLoop loop, string path, bool readOnly = false, bool exclusive = true, bool cached = false)
    {
        int flags = (readOnly ? O_RDONLY : O_RDWR) | O_CLOEXEC;
        bool isDirect = !cached;
        string? warning = null;
        int fd = open(path, flags | (isDirect ? O_DIRECT : 0), 0);
        if (fd < 0 && isDirect && Errno == -EINVAL)
        {
            isDirect = false;
            warning = $"{path}: this filesystem refuses O_DIRECT; the page cache is used";
            fd = open(path, flags, 0);
        }

        if (fd < 0) throw Failure("open", path, Errno);
        try
        {
            bool isDevice = TryDeviceSize(fd, out ulong size);
            if (isDevice && exclusive)
            {
                int held = -1;
                FileLock.TryTake(() => (held = open(path, flags | (isDirect ? O_DIRECT : 0) | O_EXCL, 0)) >= 0 || Errno != -EBUSY);
                if (held < 0) throw Failure("open exclusively (is it mounted or in use?)", path, Errno);
                close(fd);
                fd = held;
            }

            int error = 0, locking = fd;
            bool TryLock()
            {
                error = flock(locking, LOCK_EX | LOCK_NB) == 0 ? 0 : Errno;
                return error != -EAGAIN;
            }

            if (exclusive && (!FileLock.TryTake(TryLock) || error != 0))
            {
                throw error == -EAGAIN
                    ? new IOException($"{path}: another process has it open exclusively")
                    : Failure("lock", path, error);
            }

            if (!isDevice)
            {
                long end = lseek(fd, 0, SEEK_END);
                if (end < 0) throw Failure("size of", path, Errno);
                size = (ulong)end;
            }

            size -= size % Units.BlockBytes;
            var file = new DiskFile(loop, fd, path, size, isDevice, isDirect, warning);
            fd = -1;
            return file;
        }
        finally
        {
            if (fd >= 0) close(fd);
        }
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> ReadAsync(ulong offsetBytes, Memory<byte> target) =>
        TransferAsync(offsetBytes, target, isWrite: false);

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source) =>
        TransferAsync(offsetBytes, source, isWrite: true);

    /// <inheritdoc/>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> FlushAsync()
    {
        if (_isClosed) return IoStatus.Unavailable;
        _inFlight++;
        int result = IsInMemory ? await _loop.AnswerAsync(0) : await _loop.SyncDataAsync(_fd); // fsync does nothing in memory
        Leave();
        return result >= 0 ? IoStatus.Ok : Failed("flush", 0, 0, result);
    }

    /// <inheritdoc/>
    public async ValueTask<IoStatus> DiscardAsync(ulong offsetBytes, ulong lengthBytes)
    {
        if (_isClosed) return IoStatus.Unavailable;
        if (offsetBytes > SizeBytes || lengthBytes > SizeBytes - offsetBytes) return IoStatus.OutOfRange;
        _inFlight++;
        int fd = _fd;
        bool isDevice = IsBlockDevice;
        int result = await _loop.OffloadAsync(() => Discard(fd, isDevice, offsetBytes, lengthBytes));
        Leave();
        if (result is -EOPNOTSUPP or -ENOSYS or -ENOTTY) return IoStatus.NotSupported;
        return result >= 0 ? IoStatus.Ok : Failed("discard", offsetBytes, (long)lengthBytes, result);
    }

    /// <summary>Closes it as soon as nothing is in flight; later requests answer Unavailable. On the loop. Idempotent.</summary>
    public void Close()
    {
        _loop.CheckHere();
        if (_isClosed) return;
        _isClosed = true;
        if (_inFlight == 0) CloseNow();
    }

    private static unsafe bool TryDeviceSize(int fd, out ulong size)
    {
        ulong value = 0;
        bool isDevice = ioctl(fd, BLKGETSIZE64, &value) == 0;
        size = value;
        return isDevice;
    }

    private static unsafe bool LiesInMemory(int fd)
    {
        const long tmpfs = 0x01021994, ramfs = 0x858458f6;
        long* found = stackalloc long[32]; // struct statfs: 120 bytes, the type first
        return fstatfs(fd, found) == 0 && found[0] is tmpfs or ramfs;
    }

    private static unsafe int TransferInPlace(int fd, ulong offset, nint address, int length, bool isWrite)
    {
        for (int done = 0; done < length;)
        {
            byte* at = (byte*)address + done;
            nint count = isWrite
                ? pwrite(fd, at, (nuint)(length - done), (long)offset + done)
                : pread(fd, at, (nuint)(length - done), (long)offset + done);
            if (count < 0 && Errno == -EINTR) continue;
            if (count < 0) return Errno;
            if (count == 0) return -5; // EIO: the file is shorter than it said
            done += (int)count;
        }

        return 0;
    }

    private static unsafe int Discard(int fd, bool isDevice, ulong offset, ulong length)
    {
        if (!isDevice)
            return fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, (long)offset, (long)length) == 0 ? 0 : Errno;
        ulong* range = stackalloc ulong[2] { offset, length };
        return ioctl(fd, BLKDISCARD, range) == 0 ? 0 : Errno;
    }

    private static unsafe nint AddressOf(in MemoryHandle handle) => (nint)handle.Pointer;

    private static unsafe void Copy(nint from, nint to, int length) =>
        Buffer.MemoryCopy((void*)from, (void*)to, length, length);

    private static unsafe nint AllocateAligned(int length) =>
        (nint)NativeMemory.AlignedAlloc((nuint)length, Units.BlockBytes);

    private static unsafe void FreeAligned(nint address) => NativeMemory.AlignedFree((void*)address);

    private static IOException Failure(string verb, string path, int error) =>
        new($"cannot {verb} {path}: {Text(error)} (errno {-error})", -error);

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> TransferAsync(ulong offset, ReadOnlyMemory<byte> memory, bool isWrite)
    {
        if (_isClosed) return IoStatus.Unavailable;
        if (offset > SizeBytes || (ulong)memory.Length > SizeBytes - offset) return IoStatus.OutOfRange;
        if (((offset | (uint)memory.Length) & (Units.BlockBytes - 1)) != 0) return IoStatus.Invalid;
        if (memory.Length == 0) return IoStatus.Ok;
        _inFlight++;
        // Reads fill it: the caller's Memory<byte> comes here as read-only only so that both directions share this method.
        MemoryHandle pin = memory.Pin();
        nint address = AddressOf(pin);
        int result = IsInMemory
            ? await _loop.AnswerAsync(TransferInPlace(_fd, offset, address, memory.Length, isWrite))
            : !IsDirect || (address & (Units.BlockBytes - 1)) == 0
            ? await TransferPinnedAsync(offset, address, memory.Length, isWrite)
            : await BounceAsync(offset, address, memory.Length, isWrite);
        pin.Dispose();
        Leave();
        return result >= 0 ? IoStatus.Ok : Failed(isWrite ? "write" : "read", offset, memory.Length, result);
    }

    /// <summary>All of it or -errno.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> TransferPinnedAsync(ulong offset, nint address, int length, bool isWrite)
    {
        int done = 0, retries = 0;
        while (done < length)
        {
            nint at = address + done;
            int count = isWrite
                ? await _loop.WriteAtAsync(_fd, at, length - done, offset + (ulong)done)
                : await _loop.ReadAtAsync(_fd, at, length - done, offset + (ulong)done);
            if (count is -EINTR or -EAGAIN && ++retries < 100) continue;
            if (count < 0) return count;
            // Direct I/O goes on at a block only; a piece of a block is transferred again.
            if (IsDirect && done + count < length) count &= ~(Units.BlockBytes - 1);
            if (count == 0 && ++retries >= 3) return -5; // EIO: the medium is shorter than it said
            done += count;
        }

        return 0;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<int> BounceAsync(ulong offset, nint address, int length, bool isWrite)
    {
        int piece = Math.Min(length, BouncePieceBytes);
        // Waiting for the pool here could wait for the caller's own buffers, so beyond its bound the heap helps out.
        IoBuffer? rented = _loop.Buffers.TryRent(piece);
        MemoryHandle pin = rented is null ? default : rented.Data.Pin();
        nint bounce = rented is null ? AllocateAligned(piece) : AddressOf(pin);
        int result = 0;
        for (int done = 0; done < length && result >= 0; done += piece)
        {
            int count = Math.Min(piece, length - done);
            if (isWrite) Copy(address + done, bounce, count);
            result = await TransferPinnedAsync(offset + (ulong)done, bounce, count, isWrite);
            if (!isWrite && result >= 0) Copy(bounce, address + done, count);
        }

        pin.Dispose();
        if (rented is null) FreeAligned(bounce);
        else rented.Return();
        return result;
    }

    private void Leave()
    {
        Volatile.Write(ref _answered, _answered + 1);
        if (--_inFlight == 0 && _isClosed) CloseNow();
    }

    private void CloseNow()
    {
        close(_fd);
        _fd = -1;
    }

    private IoStatus Failed(string verb, ulong offset, long length, int error)
    {
        LastErrno = -error;
        LastError = $"{Path}: {verb} of {length} bytes at {offset}: {Text(error)} (errno {-error})";
        return error is -ENOSPC or -EDQUOT ? IoStatus.NoSpace : IoStatus.IoError;
    }
}
