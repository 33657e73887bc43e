using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>
/// SANITIZE (SBC-3, 4.11). It belongs to the unit, not to the command: an abort or reset ends the wait of the command,
/// never the sanitize. While it runs every command but a few is answered 02/04/1B with the progress; after a failure
/// 03/31/03 until it is repeated or, if AUSE was set, left. A restart of the daemon ends it.
/// </summary>
public sealed partial class LogicalUnit
{
    private const ulong EraseBytes = 64 << 20;
    private const ulong OldCommandPollNanos = 1_000_000;

    private readonly List<ScsiTask> _sanitizeWaiters = [];
    private bool _isSanitizing, _hasSanitizeFailed, _mayLeaveFailure;
    private ulong _sanitizeDone, _sanitizeTotal;
    private LoopTimer? _sanitizeTimer;
    private LoopOperation<bool>? _sanitizePause;

    /// <summary>A sanitize runs.</summary>
    public bool IsSanitizing => _isSanitizing;

    private Sense? SanitizeSense()
    {
        if (!_isSanitizing) return null;
        ulong progress = _sanitizeTotal == 0 ? 0 : (ulong)((UInt128)_sanitizeDone * 65535 / _sanitizeTotal);
        return new Sense(SenseKey.NotReady, 0x041B).WithProgress((ushort)progress);
    }

    /// <summary>Why the command cannot run because of a sanitize, or null.</summary>
    private Sense? SanitizeState(CommandEntry entry)
    {
        if (_isSanitizing) return SanitizeSense();
        bool isFree = entry.Access == Access.Free && !entry.Has(Traits.Medium);
        return _hasSanitizeFailed && entry.Opcode != ScsiOp.Sanitize && !isFree ? new Sense(SenseKey.MediumError, 0x3103) : null;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ScsiResult> SanitizeAsync(ScsiCommand command, CommandEntry entry)
    {
        byte[] cdb = command.Cdb;
        int length = (int)TransferPlan.ListOf(cdb)!.Value;
        bool isImmediate = (cdb[1] & 0x80) != 0;
        if (entry.Action == ScsiOp.SanitizeExit)
        {
            if (length != 0) return Sense.InCdb(7);
            if (_hasSanitizeFailed && !_mayLeaveFailure) return Sense.InCdb(1, 4);
            _hasSanitizeFailed = false;
            return ScsiResult.Good;
        }

        byte[]? pattern = null;
        int passes = 1;
        bool inverts = false;
        if (entry.Action == ScsiOp.SanitizeOverwrite)
        {
            if (length < 5 || length > _blockBytes + 4) return Sense.InCdb(7);
            if (command.OutLength < length) return Sense.ListLength;
            ReadOnlySpan<byte> list = command.DataOut.Span[..length];
            int patternBytes = BinaryPrimitives.ReadUInt16BigEndian(list[2..]);
            passes = list[0] & 0x1F;
            inverts = (list[0] & 0x80) != 0;
            if (passes == 0 || (list[0] & 0x60) != 0) return Sense.InList(0);
            if (patternBytes == 0 || patternBytes != length - 4) return Sense.InList(2);
            pattern = new byte[_blockBytes];
            for (int i = 0; i < pattern.Length; i++) pattern[i] = list[4 + i % patternBytes];
        }
        else if (length != 0)
        {
            return Sense.InCdb(7);
        }

        _mayLeaveFailure = (cdb[1] & 0x20) != 0;
        var task = (ScsiTask)command.TargetState!;
        (_isSanitizing, _hasSanitizeFailed) = (true, false);
        (_sanitizeDone, _sanitizeTotal) = (0, _device.SizeBytes * (ulong)passes);
        ValueTask<bool> ended = default;
        if (!isImmediate)
        {
            _sanitizeWaiters.Add(task);
            ended = task.Begin();
        }

        StartSanitize(task.Sequence, pattern, passes, inverts);
        if (isImmediate) return ScsiResult.Good;
        await ended;
        _sanitizeWaiters.Remove(task);
        return _hasSanitizeFailed ? new Sense(SenseKey.MediumError, 0x3103) : ScsiResult.Good;
    }

    /// <summary>Runs on its own from here; the result is in the unit's state.</summary>
    private async void StartSanitize(ulong sequence, byte[]? pattern, int passes, bool inverts)
    {
        IoStatus status;
        try
        {
            // Older commands that run may still write: they end first. A new turn in any case, so that a command that does
            // not wait is answered before the work begins.
            do
            {
                await PauseAsync(OldCommandPollNanos);
            }
            while (_tasks.Find(t => t.IsStarted && t.Sequence < sequence) is not null);
            status = pattern is null ? await EraseAsync() : await OverwriteAsync(pattern, passes, inverts);
            if (status == IoStatus.Ok) status = await _device.FlushAsync();
        }
        catch (Exception bug) when (bug is not OutOfMemoryException)
        {
            status = IoStatus.IoError; // the unit stays closed: 03/31/03
        }

        _isSanitizing = false;
        _hasSanitizeFailed = status != IoStatus.Ok;
        foreach (ScsiTask waiter in _sanitizeWaiters.ToArray())
        {
            if (waiter.IsPending) waiter.Complete(true);
        }
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> EraseAsync()
    {
        ulong size = _device.SizeBytes;
        for (ulong at = 0; at < size; at += EraseBytes)
        {
            ulong count = Math.Min(EraseBytes, size - at);
            IoStatus status = await _device.WriteZeroesAsync(at, count, WriteFlags.None);
            if (status != IoStatus.Ok) return status;
            _sanitizeDone = at + count;
        }

        return IoStatus.Ok;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> OverwriteAsync(byte[] pattern, int passes, bool inverts)
    {
        ulong size = _device.SizeBytes, start = _loop.NowNanos;
        IoBuffer buffer = await RentWorkAsync(WorkBytes);
        try
        {
            for (int pass = 0; pass < passes; pass++)
            {
                Repeat(pattern, buffer.Data.Span[..WorkBytes]);
                for (ulong at = 0; at < size; at += WorkBytes)
                {
                    int count = (int)Math.Min(WorkBytes, size - at);
                    IoStatus status = await _device.WriteAsync(at, buffer.Slice(0, count), WriteFlags.None);
                    if (status != IoStatus.Ok) return status;
                    _sanitizeDone += (ulong)count;
                    ulong due = start + (ulong)((UInt128)_options.SanitizeNanosMin * _sanitizeDone / _sanitizeTotal);
                    if (due > _loop.NowNanos) await PauseAsync(due - _loop.NowNanos);
                }

                if (!inverts) continue;
                for (int i = 0; i < pattern.Length; i++) pattern[i] ^= 0xFF;
            }
        }
        finally
        {
            buffer.Return();
        }

        return IoStatus.Ok;
    }

    private ValueTask<bool> PauseAsync(ulong nanos)
    {
        _sanitizePause ??= new LoopOperation<bool>();
        _sanitizeTimer ??= _loop.CreateTimer(() => _sanitizePause.Complete(true));
        ValueTask<bool> pause = _sanitizePause.Begin();
        _sanitizeTimer.Start(nanos);
        return pause;
    }
}
