using System.Runtime.InteropServices;
using BlockServer.Core;
using static BlockServer.Io.Native;

namespace BlockServer.Io;

/// <summary>
/// A loop over an io_uring of its own (single issuer, deferred task run: completions are produced only while the loop
/// asks for them, on its thread, without interrupts). One system call a turn submits and waits. Lives on one loop.
/// </summary>
public sealed unsafe class UringLoop : KernelLoop
{
    private const uint SqEntries = 1024, CqEntries = 4096;
    private const uint SetupCqSize = 1 << 3, SetupClamp = 1 << 4, SetupSubmitAll = 1 << 7, SetupCoopTaskrun = 1 << 8,
        SetupTaskrunFlag = 1 << 9, SetupSingleIssuer = 1 << 12, SetupDeferTaskrun = 1 << 13;

    private const uint FeatureSingleMmap = 1, FeatureExtArg = 1 << 8;
    private const uint EnterGetEvents = 1, EnterExtArg = 1 << 3;
    private const int OpFsync = 3, OpSendMsg = 9, OpAccept = 13, OpAsyncCancel = 14, OpRead = 22, OpWrite = 23, OpRecv = 27;
    private const uint FsyncDataSync = 1, CancelAllFlag = 1, CancelAny = 4;
    private const ulong WakeTag = ulong.MaxValue, CancelTag = ulong.MaxValue - 1;

    // A long turn hands its requests over in lots of this many, so that the disk works while the rest is prepared.
    private const uint SubmitLot = 8;

    private const uint NeedsTaskRun = 4; // IORING_SQ_TASKRUN

    private readonly int _ring;
    private readonly int _wake;
    private readonly nint _rings, _sqes;
    private readonly nuint _ringsBytes, _sqesBytes;
    private readonly uint* _sqHead, _sqTail, _sqFlags, _cqHead, _cqTail;
    private readonly uint _sqMask, _sqSize, _cqMask;
    private readonly byte* _cqes;
    private readonly ulong* _wakeValue;
    private readonly BusyPoll _polling;
    private uint _tail;
    private int _diskInFlight;
    private bool _isCancelled;

    private UringLoop(long poolBytes, IRandom random, ulong busyPollNanos, int ring, uint* p)
        : base(poolBytes, random)
    {
        _polling = new BusyPoll(busyPollNanos);
        _ring = ring;
        _sqSize = p[0];
        uint cqSize = p[1];
        uint* sqOffsets = p + 10, cqOffsets = p + 20;
        _ringsBytes = Math.Max(sqOffsets[6] + _sqSize * 4, cqOffsets[5] + cqSize * 16);
        _sqesBytes = _sqSize * 64;
        _rings = Map(ring, _ringsBytes, 0);
        _sqes = Map(ring, _sqesBytes, 0x10000000);
        byte* rings = (byte*)_rings;
        _sqHead = (uint*)(rings + sqOffsets[0]);
        _sqTail = (uint*)(rings + sqOffsets[1]);
        _sqMask = *(uint*)(rings + sqOffsets[2]);
        _sqFlags = (uint*)(rings + sqOffsets[4]);
        uint* array = (uint*)(rings + sqOffsets[6]);
        for (uint i = 0; i < _sqSize; i++) array[i] = i;
        _cqHead = (uint*)(rings + cqOffsets[0]);
        _cqTail = (uint*)(rings + cqOffsets[1]);
        _cqMask = *(uint*)(rings + cqOffsets[2]);
        _cqes = rings + cqOffsets[5];
        _wake = eventfd(0, EFD_CLOEXEC);
        if (_wake < 0) throw new IOException("eventfd: " + Text(Errno));
        _wakeValue = (ulong*)NativeMemory.AllocZeroed(8);
        AskForWake();
    }

    /// <inheritdoc/>
    public override string EngineName => "io_uring";

    /// <summary>Makes the ring, enabled, on this thread; the reason when the kernel refuses.</summary>
    internal static UringLoop? TryCreate(long poolBytes, IRandom random, ulong busyPollNanos, out string? failure)
    {
        uint* p = stackalloc uint[30]; // struct io_uring_params: 120 bytes
        new Span<uint>(p, 30).Clear();
        p[1] = CqEntries;
        p[2] = SetupCqSize | SetupClamp | SetupSubmitAll | SetupCoopTaskrun | SetupTaskrunFlag | SetupSingleIssuer
            | SetupDeferTaskrun;
        int ring = (int)syscall(425, (nint)SqEntries, (nint)p, 0, 0, 0, 0);
        if (ring < 0)
        {
            int errno = -Errno;
            failure = errno switch
            {
                EPERM => "the kernel forbids io_uring (EPERM: sysctl kernel.io_uring_disabled, or a seccomp filter)",
                ENOSYS => "the kernel has no io_uring (ENOSYS)",
                EINVAL => "the kernel's io_uring is too old (EINVAL: 6.1 or newer is needed)",
                _ => $"io_uring_setup: {Text(errno)} (errno {errno})",
            };
            return null;
        }

        if ((p[5] & (FeatureSingleMmap | FeatureExtArg)) != (FeatureSingleMmap | FeatureExtArg))
        {
            close(ring);
            failure = "the kernel's io_uring lacks SINGLE_MMAP or EXT_ARG";
            return null;
        }

        failure = null;
        return new UringLoop(poolBytes, random, busyPollNanos, ring, p);
    }

    /// <summary>A completion is in the ring, or the kernel has one to put there.</summary>
    private bool HasNews =>
        (Volatile.Read(ref *_sqFlags) & NeedsTaskRun) != 0 || Volatile.Read(ref *_cqTail) != *_cqHead;

    internal override ValueTask<int> ReadAtAsync(int fd, nint target, int length, ulong offset) =>
        AskDisk(OpRead, fd, target, length, offset, 0);

    internal override ValueTask<int> WriteAtAsync(int fd, nint source, int length, ulong offset) =>
        AskDisk(OpWrite, fd, source, length, offset, 0);

    internal override ValueTask<int> SyncDataAsync(int fd) => AskDisk(OpFsync, fd, 0, 0, 0, FsyncDataSync);

    internal override void AddSocket(SocketState socket)
    {
    }

    internal override void RemoveSocket(SocketState socket)
    {
    }

    internal override ValueTask<int> ReceiveAsync(SocketState socket, nint target, int length) =>
        Ask(OpRecv, socket.Fd, target, length, 0, 0);

    internal override ValueTask<int> SendAsync(SocketState socket, nint message) =>
        Ask(OpSendMsg, socket.Fd, message, 1, 0, MSG_NOSIGNAL);

    internal override ValueTask<int> AcceptAsync(SocketState socket) =>
        Ask(OpAccept, socket.Fd, 0, 0, 0, SOCK_CLOEXEC);

    private protected override void SubmitAndReap(ulong waitNanos)
    {
        if (Volatile.Read(ref *_cqTail) != *_cqHead) waitNanos = 0;
        if (_diskInFlight > 0) _polling.OnDiskAsked();
        bool isNoted = _polling.LimitNanos > 0 && waitNanos > 0 && _diskInFlight == 0;
        ulong waitsSince = isNoted ? MonotonicClock.ReadNanos() : 0;
        if (isNoted && _polling.IsWorthwhile)
        {
            if (_tail != Volatile.Read(ref *_sqHead)) Enter(0, null);
            while (!HasNews && MonotonicClock.ReadNanos() - waitsSince < _polling.LimitNanos) Thread.SpinWait(1);
        }

        var time = new TimeSpec { Seconds = (long)(waitNanos / 1_000_000_000), Nanos = (long)(waitNanos % 1_000_000_000) };
        ulong* argument = stackalloc ulong[3]; // struct io_uring_getevents_arg
        argument[0] = 0;
        argument[1] = 0;
        argument[2] = (ulong)&time;
        Enter(waitNanos > 0 ? 1u : 0u, argument);

        if (isNoted) _polling.OnWaited(MonotonicClock.ReadNanos() - waitsSince);
        uint head = *_cqHead, tail = Volatile.Read(ref *_cqTail);
        for (; head != tail; head++)
        {
            byte* cqe = _cqes + (head & _cqMask) * 16;
            ulong tag = *(ulong*)cqe;
            if (tag == WakeTag) AskForWake();
            else if (tag != CancelTag) Answer(OperationOf((int)tag), *(int*)(cqe + 8));
        }

        Volatile.Write(ref *_cqHead, head);
    }

    private protected override void Wake()
    {
        ulong one = 1;
        _ = write(_wake, &one, 8);
    }

    private protected override void CancelAll()
    {
        _isCancelled = true;
        Write(OpAsyncCancel, -1, 0, 0, 0, CancelAllFlag | CancelAny, CancelTag);
    }

    private protected override void Release()
    {
        close(_ring);
        close(_wake);
        _ = munmap(_rings, _ringsBytes);
        _ = munmap(_sqes, _sqesBytes);
        // _wakeValue stays: the kernel may end the wake read after the ring's descriptor is closed. 8 bytes a loop.
    }

    private static nint Map(int ring, nuint length, nint offset)
    {
        nint at = mmap(0, length, 3 /* read, write */, 0x8001 /* shared, populate */, ring, offset);
        return at != -1 ? at : throw new IOException("mmap of the ring: " + Text(Errno));
    }

    private void AskForWake()
    {
        if (!_isCancelled) Write(OpRead, _wake, (nint)_wakeValue, 8, ulong.MaxValue, 0, WakeTag);
    }

    private ValueTask<int> AskDisk(int opcode, int fd, nint address, int length, ulong offset, uint flags)
    {
        _diskInFlight++;
        return Ask(opcode, fd, address, length, offset, flags);
    }

    private void Answer(IoOperation operation, int result)
    {
        if (operation.Kind is OpRead or OpWrite or OpFsync) _diskInFlight--;
        Complete(operation, result);
    }

    private ValueTask<int> Ask(int opcode, int fd, nint address, int length, ulong offset, uint flags)
    {
        Check.That(IsHere);
        IoOperation operation = Rent(opcode);
        ValueTask<int> answer = operation.Begin();
        Write(opcode, fd, address, length, offset, flags, (ulong)operation.Index);
        return answer;
    }

    private void Write(int opcode, int fd, nint address, int length, ulong offset, uint flags, ulong tag)
    {
        while (_tail - Volatile.Read(ref *_sqHead) >= _sqSize) Enter(0, null);
        byte* sqe = (byte*)_sqes + (_tail & _sqMask) * 64;
        new Span<byte>(sqe, 64).Clear();
        sqe[0] = (byte)opcode;
        *(int*)(sqe + 4) = fd;
        *(ulong*)(sqe + 8) = offset;
        *(ulong*)(sqe + 16) = (ulong)address;
        *(int*)(sqe + 24) = length;
        *(uint*)(sqe + 28) = flags;
        *(ulong*)(sqe + 32) = tag;
        _tail++;
        Volatile.Write(ref *_sqTail, _tail);
        if (_tail - Volatile.Read(ref *_sqHead) >= SubmitLot) Enter(0, null);
    }

    /// <summary>One io_uring_enter; with an argument it also fetches completions.</summary>
    private void Enter(uint minComplete, ulong* argument)
    {
        uint submit = _tail - Volatile.Read(ref *_sqHead);
        nint flags = argument is null ? 0 : (nint)(EnterGetEvents | EnterExtArg);
        if (syscall(426, _ring, (nint)submit, (nint)minComplete, flags, (nint)argument, argument is null ? 0 : 24) >= 0) return;
        int errno = -Errno;
        // ETIME: the next timer is due. EINTR: a signal. EAGAIN, EBUSY: the kernel wants completions reaped or memory
        // freed first; what was not taken stays in the ring for the next turn.
        if (errno is ETIME or EINTR or EAGAIN or EBUSY) return;
        throw new IOException($"io_uring_enter: {Text(errno)} (errno {errno})");
    }
}
