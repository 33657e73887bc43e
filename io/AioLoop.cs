using System.Runtime.InteropServices;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A loop over native Linux AIO for files and epoll (edge-triggered) for sockets, for kernels and containers that forbid
/// io_uring. A buffered (not O_DIRECT) transfer blocks the loop while the kernel copies. Lives on one loop.
/// </summary>
public sealed unsafe class AioLoop : KernelLoop
{
    private const int Depth = 1024, EventsMax = 256, ControlBlockBytes = 64, EventBytes = 32;
    private const int KindRead = 0, KindWrite = 1, KindSync = 3, KindReceive = 100, KindSend = 101, KindAccept = 102;
    private const ulong WakeTag = ulong.MaxValue, DiskTag = ulong.MaxValue - 1;

    private static readonly int CallSetup = IsArm ? 0 : 206, CallDestroy = IsArm ? 1 : 207, CallSubmit = IsArm ? 2 : 209,
        CallGetEvents = IsArm ? 4 : 208;

    // struct epoll_event is packed on x86-64 only.
    private static readonly int EpollStride = IsArm ? 16 : 12, EpollDataAt = IsArm ? 8 : 4;

    private readonly nint _context;
    private readonly int _epoll, _wake, _diskReady;
    private readonly byte* _controlBlocks, _diskEvents, _epollEvents;
    private readonly nint* _submitting;
    private readonly int[] _freeBlocks = new int[Depth];
    private readonly Queue<DiskRequest> _diskQueue = new();
    private readonly List<SocketState?> _sockets = [];
    private readonly Stack<int> _freeSockets = new();
    private List<IoOperation> _tryNow = [];
    private List<IoOperation> _trying = [];
    private int _freeBlockCount = Depth;
    private bool _hasPreciseWait = true;

    private AioLoop(long poolBytes, IRandom random, nint context, int epoll, int wake, int diskReady)
        : base(poolBytes, random)
    {
        _context = context;
        _epoll = epoll;
        _wake = wake;
        _diskReady = diskReady;
        _controlBlocks = (byte*)NativeMemory.AllocZeroed(Depth * ControlBlockBytes);
        _diskEvents = (byte*)NativeMemory.AllocZeroed(EventsMax * EventBytes);
        _epollEvents = (byte*)NativeMemory.AllocZeroed((nuint)(EventsMax * 16));
        _submitting = (nint*)NativeMemory.AllocZeroed((nuint)(Depth * sizeof(nint)));
        for (int i = 0; i < Depth; i++) _freeBlocks[i] = i;
        Watch(wake, EPOLLIN, WakeTag);
        Watch(diskReady, EPOLLIN, DiskTag);
    }

    /// <inheritdoc/>
    public override string EngineName => "aio";

    /// <summary>Makes the loop on this thread. Throws <see cref="IOException"/> when the kernel refuses.</summary>
    internal static AioLoop Create(long poolBytes, IRandom random)
    {
        nint context = 0;
        if (syscall(CallSetup, Depth, (nint)(&context), 0, 0, 0, 0) != 0)
            throw new IOException($"engine aio: io_setup: {Text(Errno)} (errno {-Errno}; see sysctl fs.aio-max-nr)");
        int epoll = epoll_create1(O_CLOEXEC);
        int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int diskReady = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (epoll >= 0 && wake >= 0 && diskReady >= 0)
            return new AioLoop(poolBytes, random, context, epoll, wake, diskReady);
        throw new IOException($"engine aio: {Text(Errno)} (errno {-Errno})");
    }

    internal override ValueTask<int> ReadAtAsync(int fd, nint target, int length, ulong offset) =>
        AskDisk(KindRead, fd, target, length, offset);

    internal override ValueTask<int> WriteAtAsync(int fd, nint source, int length, ulong offset) =>
        AskDisk(KindWrite, fd, source, length, offset);

    internal override ValueTask<int> SyncDataAsync(int fd) => AskDisk(KindSync, fd, 0, 0, 0);

    internal override void AddSocket(SocketState socket)
    {
        if (!_freeSockets.TryPop(out int index))
        {
            index = _sockets.Count;
            _sockets.Add(null);
        }

        _sockets[index] = socket;
        socket.Index = index;
        Watch(socket.Fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, (ulong)index);
    }

    internal override void RemoveSocket(SocketState socket)
    {
        byte* unused = stackalloc byte[16];
        _ = epoll_ctl(_epoll, EPOLL_CTL_DEL, socket.Fd, unused);
        _sockets[socket.Index] = null;
        _freeSockets.Push(socket.Index);
    }

    internal override ValueTask<int> ReceiveAsync(SocketState socket, nint target, int length) =>
        AskSocket(KindReceive, socket, target, length);

    internal override ValueTask<int> SendAsync(SocketState socket, nint message) =>
        AskSocket(KindSend, socket, message, 0);

    internal override ValueTask<int> AcceptAsync(SocketState socket)
    {
        // A connection that goes away between readiness and accept must not block the loop.
        int flags = fcntl(socket.Fd, F_GETFL, 0);
        if ((flags & O_NONBLOCK) == 0) _ = fcntl(socket.Fd, F_SETFL, flags | O_NONBLOCK);
        return AskSocket(KindAccept, socket, 0, 0);
    }

    private protected override void SubmitAndReap(ulong waitNanos)
    {
        SubmitDisk();
        if (TrySockets()) waitNanos = 0;
        int count = Wait(waitNanos);
        for (int i = 0; i < count; i++)
        {
            byte* ev = _epollEvents + i * EpollStride;
            ulong tag = *(ulong*)(ev + EpollDataAt);
            if (tag is WakeTag or DiskTag)
            {
                ulong drained;
                _ = read(tag == WakeTag ? _wake : _diskReady, &drained, 8);
                if (tag == DiskTag) ReapDisk();
            }
            else if (_sockets[(int)tag] is { } socket)
            {
                Ready(socket, *(uint*)ev);
            }
        }

        TrySockets();
    }

    private protected override void Wake()
    {
        ulong one = 1;
        _ = write(_wake, &one, 8);
    }

    private protected override void CancelAll()
    {
        // The disk answers by itself; sockets that wait are told so.
        foreach (SocketState? socket in _sockets)
        {
            if (socket is null) continue;
            if (socket.Reader is { } reader) Complete(reader, -ECANCELED);
            if (socket.Writer is { } writer) Complete(writer, -ECANCELED);
            socket.Reader = socket.Writer = null;
        }
    }

    private protected override void Release()
    {
        _ = syscall(CallDestroy, _context, 0, 0, 0, 0, 0); // waits for what is in flight
        close(_epoll);
        close(_wake);
        close(_diskReady);
        NativeMemory.Free(_controlBlocks);
        NativeMemory.Free(_diskEvents);
        NativeMemory.Free(_epollEvents);
        NativeMemory.Free(_submitting);
    }

    private void Watch(int fd, uint events, ulong tag)
    {
        byte* ev = stackalloc byte[16];
        *(uint*)ev = events;
        *(ulong*)(ev + EpollDataAt) = tag;
        if (epoll_ctl(_epoll, EPOLL_CTL_ADD, fd, ev) != 0)
            throw new IOException($"epoll_ctl: {Text(Errno)} (errno {-Errno})");
    }

    private ValueTask<int> AskDisk(int kind, int fd, nint address, int length, ulong offset)
    {
        Check.That(IsHere);
        IoOperation operation = Rent(kind);
        ValueTask<int> answer = operation.Begin();
        _diskQueue.Enqueue(new DiskRequest(operation, fd, address, length, offset));
        return answer;
    }

    private ValueTask<int> AskSocket(int kind, SocketState socket, nint address, int length)
    {
        Check.That(IsHere);
        IoOperation operation = Rent(kind);
        ValueTask<int> answer = operation.Begin();
        operation.Socket = socket;
        operation.Address = address;
        operation.Length = length;
        _tryNow.Add(operation);
        return answer;
    }

    private void SubmitDisk()
    {
        int count = 0;
        while (_freeBlockCount > 0 && _diskQueue.TryDequeue(out DiskRequest request))
        {
            int block = _freeBlocks[--_freeBlockCount];
            byte* at = _controlBlocks + block * ControlBlockBytes; // struct iocb
            new Span<byte>(at, ControlBlockBytes).Clear();
            *(ulong*)at = ((ulong)block << 32) | (uint)request.Operation.Index;
            *(ushort*)(at + 16) = (ushort)request.Operation.Kind; // PREAD 0, PWRITE 1, FDSYNC 3
            *(int*)(at + 20) = request.Fd;
            *(ulong*)(at + 24) = (ulong)request.Address;
            *(ulong*)(at + 32) = (ulong)request.Length;
            *(ulong*)(at + 40) = request.Offset;
            *(uint*)(at + 56) = 1; // IOCB_FLAG_RESFD
            *(int*)(at + 60) = _diskReady;
            _submitting[count++] = (nint)at;
        }

        int done = 0;
        while (done < count)
        {
            nint taken = syscall(CallSubmit, _context, count - done, (nint)(_submitting + done), 0, 0, 0);
            if (taken > 0)
            {
                done += (int)taken;
                continue;
            }

            int error = taken < 0 ? Errno : -EAGAIN;
            if (error == -EINTR) continue;
            // The first one was refused; EAGAIN reaches the caller too, who tries again in a later turn.
            byte* refused = (byte*)_submitting[done++];
            Free(*(ulong*)refused, error);
        }
    }

    private void ReapDisk()
    {
        while (true)
        {
            var none = default(TimeSpec);
            nint count = syscall(CallGetEvents, _context, 0, EventsMax, (nint)_diskEvents, (nint)(&none), 0);
            for (nint i = 0; i < count; i++)
            {
                byte* ev = _diskEvents + i * EventBytes; // struct io_event: data, obj, res, res2
                Free(*(ulong*)ev, (int)*(long*)(ev + 16));
            }

            if (count < EventsMax) return;
        }
    }

    private void Free(ulong tag, int result)
    {
        _freeBlocks[_freeBlockCount++] = (int)(tag >> 32);
        Complete(OperationOf((int)(uint)tag), result);
    }

    /// <summary>Tries what was asked for; true when something was answered.</summary>
    private bool TrySockets()
    {
        (_tryNow, _trying) = (_trying, _tryNow);
        bool isAnswered = false;
        foreach (IoOperation operation in _trying)
        {
            SocketState socket = operation.Socket!;
            nint result = operation.Kind switch
            {
                KindReceive => recv(socket.Fd, (void*)operation.Address, (nuint)operation.Length, MSG_DONTWAIT),
                KindSend => sendmsg(socket.Fd, (MessageHeader*)operation.Address, MSG_DONTWAIT | MSG_NOSIGNAL),
                _ => accept4(socket.Fd, null, null, SOCK_CLOEXEC),
            };
            int answer = result >= 0 ? (int)result : Errno;
            // accept on a unix listener that was shut down answers EAGAIN for ever.
            if (answer == -EAGAIN && socket.IsShut) answer = -ECANCELED;
            if (answer == -EAGAIN)
            {
                if (operation.Kind == KindSend) socket.Writer = operation;
                else socket.Reader = operation;
                continue;
            }

            Complete(operation, answer);
            isAnswered = true;
        }

        _trying.Clear();
        return isAnswered;
    }

    private void Ready(SocketState socket, uint events)
    {
        const uint Both = EPOLLERR | EPOLLHUP;
        if (socket.Reader is { } reader && (events & (EPOLLIN | EPOLLRDHUP | Both)) != 0)
        {
            socket.Reader = null;
            _tryNow.Add(reader);
        }

        if (socket.Writer is { } writer && (events & (EPOLLOUT | Both)) != 0)
        {
            socket.Writer = null;
            _tryNow.Add(writer);
        }
    }

    private int Wait(ulong waitNanos)
    {
        int count;
        if (_hasPreciseWait)
        {
            var time = new TimeSpec { Seconds = (long)(waitNanos / 1_000_000_000), Nanos = (long)(waitNanos % 1_000_000_000) };
            count = (int)syscall(441 /* epoll_pwait2 */, _epoll, (nint)_epollEvents, EventsMax, (nint)(&time), 0, 8);
            if (count >= 0) return count;
            if (Errno is not (-ENOSYS or -EPERM)) return Waited();
            _hasPreciseWait = false; // before 5.11
        }

        count = epoll_wait(_epoll, _epollEvents, EventsMax, (int)Math.Min((waitNanos + 999_999) / 1_000_000, int.MaxValue));
        return count >= 0 ? count : Waited();

        static int Waited() => Errno == -EINTR ? 0 : throw new IOException($"epoll: {Text(Errno)} (errno {-Errno})");
    }

    private readonly record struct DiskRequest(IoOperation Operation, int Fd, nint Address, int Length, ulong Offset);
}
