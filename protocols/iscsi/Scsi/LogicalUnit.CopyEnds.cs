using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Protocols.Iscsi.Scsi;

/// <summary>What EXTENDED COPY does in the unit of one end, on the loop of that unit; the copy itself may run on another.</summary>
public sealed partial class LogicalUnit
{
    /// <summary>Checks that the nexus may copy <paramref name="length"/> bytes from or to here, and enters the copy in the task set.
    /// The range of a destination is locked until <see cref="CloseCopyEnd"/>, which is to be called when there is no fault.</summary>
    internal async ValueTask<Sense?> OpenCopyEndAsync(CopyEnd end, ulong length)
    {
        if (CopyFault(end) is { } fault) return fault;
        if (end.Lba > CapacityBlocks) return NotReachable;
        if (length == 0) return null;
        ulong offset = OffsetOf(end);
        if (offset > _device.SizeBytes || length > _device.SizeBytes - offset) return NotReachable;
        if (end.IsDestination && IsProtected(end.Nexus)) return WriteProtected(end.Nexus);
        end.Task = _tasks.Join(end.Command, end.Nexus);
        if (!end.IsDestination) return null;
        end.Held = _gate.Take(offset, length, true, out ValueTask<bool> wait);
        await wait;
        if (!end.Command.IsAborted) return null;
        CloseCopyEnd(end);
        return CopyFault(end) ?? DeviceFailure;
    }

    /// <summary>No piece of it may be under way.</summary>
    internal void CloseCopyEnd(CopyEnd end)
    {
        if (end.Held is { } held) _gate.Release(held);
        if (end.Task is { } task) _tasks.Leave(task);
        (end.Held, end.Task) = (null, null);
    }

    /// <summary>Reads a piece that begins <paramref name="skip"/> bytes after the beginning of the end. The memory may be of another
    /// loop.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<CopiedPiece> ReadCopyPieceAsync(CopyEnd end, ulong skip, Memory<byte> piece)
    {
        if (CopyFault(end) is { } fault) return new CopiedPiece(fault, false);
        ReadResult read = await _device.ReadAsync(OffsetOf(end) + skip, piece);
        return new CopiedPiece(CopyFailure(read.Status), read.HasHoles);
    }

    /// <summary>Writes a piece. Holes stay holes where the destination is thin.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    internal async ValueTask<CopiedPiece> WriteCopyPieceAsync(CopyEnd end, ulong skip, ReadOnlyMemory<byte> piece, bool hasHoles)
    {
        if (CopyFault(end) is { } fault) return new CopiedPiece(fault, false);
        bool isZero = hasHoles && _options.IsThin && !piece.Span.ContainsAnyExcept((byte)0);
        ulong offset = OffsetOf(end) + skip;
        IoStatus status = isZero
            ? await _device.WriteZeroesAsync(offset, (ulong)piece.Length, CacheFlags)
            : await _device.WriteAsync(offset, piece, CacheFlags);
        return new CopiedPiece(CopyFailure(status), false);
    }

    /// <summary>Why the nexus may not copy now: asked before every piece, for reservations and LUNs change while a copy runs.</summary>
    private Sense? CopyFault(CopyEnd end)
    {
        if (!_nexuses.Contains(end.Nexus) || !MayCopy(end.Nexus, end.IsDestination)) return NotReachable;
        if (_isEjected || _isSanitizing) return NotReachable;
        return end.Command.IsAborted ? DeviceFailure : null;
    }

    private ulong OffsetOf(CopyEnd end) => (end.Lba << _blockShift) + end.SkipBytes;

    private static Sense DeviceFailure => new(SenseKey.CopyAborted, 0x0D01); // third party device failure

    private static Sense? CopyFailure(IoStatus status) => status switch
    {
        IoStatus.Ok => null,
        IoStatus.NoSpace => new Sense(SenseKey.DataProtect, 0x2707),
        IoStatus.ReadOnly => new Sense(SenseKey.DataProtect, 0x2700),
        _ => DeviceFailure,
    };
}
