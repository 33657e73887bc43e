using System.Buffers;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A volume, or with a view a snapshot of it, as a disk: cuts requests into extents. With <paramref name="isCopy"/> one that is
/// append-only can be written as long as it is nobody's. Lives on the store's loop.</summary>
internal sealed class VolumeDevice(Store store, Volume volume, BufferPool buffers, Line? view = null, bool isCopy = false) : IBlockDevice
{
    // Extents of one request that are under way at a time.
    private const int PiecesAtOnce = 33;
    private static readonly byte[] Zeros = GC.AllocateArray<byte>(Units.ExtentBytes, pinned: true);

    public ulong SizeBytes => view is not null ? view.Base!.Head.SizeBytes
        : volume.Appends is { } appends ? AppendState.Shown(appends.DurableBytes)
        : volume.Head.SizeBytes;

    public bool IsReadOnly => view is not null || (volume.Head.IsAppendOnly && !(isCopy && volume.Head.Epoch == 0));

    /// <summary>Where the bytes of an append-only volume end; elsewhere nowhere.</summary>
    private ulong LengthBytes => view is not null ? view.Base!.Head.LengthBytes
        : volume.Appends?.DurableBytes ?? ulong.MaxValue;

    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        if (Fault(offsetBytes, (ulong)target.Length, true) is { } fault) return new(fault);
        return offsetBytes + (ulong)target.Length > LengthBytes ? ReadToEndAsync(offsetBytes, target) : ReadInsideAsync(offsetBytes, target);
    }

    /// <summary>What lies behind the length on the medium is nobody's: it reads as zeros.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadToEndAsync(ulong offsetBytes, Memory<byte> target)
    {
        ulong length = LengthBytes; // it may be more when the read is done, and what came meanwhile was perhaps not read
        ReadResult result = await ReadInsideAsync(offsetBytes, target);
        target[(int)(Math.Max(length, offsetBytes) - offsetBytes)..].Span.Clear();
        return result;
    }

    private ValueTask<ReadResult> ReadInsideAsync(ulong offsetBytes, Memory<byte> target)
    {
        return (offsetBytes % Units.ExtentBytes) + (ulong)target.Length <= Units.ExtentBytes
            ? ReadExtentAsync(offsetBytes, target)
            : ReadExtentsAsync(offsetBytes, target);
    }

    private ValueTask<ReadResult> ReadExtentAsync(ulong offset, Memory<byte> target)
    {
        uint extent = (uint)(offset >> Units.ExtentShift);
        int start = (int)(offset % Units.ExtentBytes);
        return (start | target.Length) % Units.BlockBytes == 0
            ? store.ReadBlocksAsync(volume, extent, start >> Units.BlockShift, target.Length >> Units.BlockShift, target, view)
            : ReadPartAsync(extent, start, target);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadExtentsAsync(ulong offsetBytes, Memory<byte> target)
    {
        ValueTask<ReadResult>[] parts = ArrayPool<ValueTask<ReadResult>>.Shared.Rent(target.Length / Units.ExtentBytes + 2);
        int count = 0;
        for (int done = 0; done < target.Length;)
        {
            ulong at = offsetBytes + (ulong)done;
            int length = Math.Min(target.Length - done, Units.ExtentBytes - (int)(at % Units.ExtentBytes));
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
            parts[count++] = ReadExtentAsync(at, target.Slice(done, length));
#pragma warning restore CA2012
            done += length;
        }

        IoStatus status = IoStatus.Ok;
        bool holes = false;
        for (int i = 0; i < count; i++)
        {
            ReadResult part = await parts[i];
            if (status == IoStatus.Ok) status = part.Status;
            holes |= part.HasHoles;
        }

        ArrayPool<ValueTask<ReadResult>>.Shared.Return(parts, clearArray: true);
        return new ReadResult(status, holes);
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<ReadResult> ReadPartAsync(uint extent, int start, Memory<byte> target)
    {
        int first = start >> Units.BlockShift;
        int count = ((start + target.Length + Units.BlockBytes - 1) >> Units.BlockShift) - first;
        IoBuffer bounce = await buffers.RentAsync(count << Units.BlockShift);
        ReadResult result = await store.ReadBlocksAsync(
            volume, extent, first, count, bounce.Slice(0, count << Units.BlockShift), view);
        bounce.Slice(start - (first << Units.BlockShift), target.Length).CopyTo(target);
        bounce.Return();
        return result;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        if (IsReadOnly) return IoStatus.ReadOnly;
        if (Fault(offsetBytes, (ulong)source.Length, true) is { } fault) return fault;
        if (source.Length == 0) return IoStatus.Ok;
        IoStatus status = source.Length <= Store.AtomicBytes
            ? await store.WriteAsync(volume, offsetBytes, source)
            : await ChangePiecesAsync(offsetBytes, offsetBytes + (ulong)source.Length, source);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    public ValueTask<IoStatus> FlushAsync() => volume.IsDeleting ? new(IoStatus.Unavailable) : store.FlushAsync();

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (IsReadOnly) return IoStatus.ReadOnly;
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        const ulong mask = Units.BlockBytes - 1;
        ulong start = (offsetBytes + mask) & ~mask;
        ulong end = (offsetBytes + lengthBytes) & ~mask;
        IoStatus status = end <= start ? IoStatus.Ok : await ZeroAsync(start, end);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (IsReadOnly) return IoStatus.ReadOnly;
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        bool noHole = (flags & WriteFlags.NoHole) != 0;
        if (noHole && (flags & WriteFlags.FastOnly) != 0) return IoStatus.NotSupported;
        if (lengthBytes == 0) return IoStatus.Ok;
        ulong end = offsetBytes + lengthBytes;
        IoStatus status = (flags & WriteFlags.HolesOnly) != 0 ? await AllocateAsync(offsetBytes, end)
            : !noHole ? await ZeroAsync(offsetBytes, end)
            : lengthBytes <= Store.AtomicBytes ? await store.WriteAsync(volume, offsetBytes, Zeros.AsMemory(0, (int)lengthBytes))
            : await ChangePiecesAsync(offsetBytes, end, Zeros);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    /// <summary>Extent by extent: it is done in the background and must leave others their turn.</summary>
    private async ValueTask<IoStatus> AllocateAsync(ulong start, ulong end)
    {
        for (ulong at = start; at < end;)
        {
            int length = (int)Math.Min(end - at, Units.ExtentBytes - at % Units.ExtentBytes);
            IoStatus status = await store.AllocateAsync(volume, at, length, Zeros);
            if (status != IoStatus.Ok) return status;
            at += (ulong)length;
        }

        return IoStatus.Ok;
    }

    private ValueTask<IoStatus> ZeroAsync(ulong start, ulong end) => end - start <= Store.AtomicBytes
        ? store.ZeroAsync(volume, start, (int)(end - start))
        : ChangePiecesAsync(start, end, default);

    /// <summary>A request of more than what is atomic, extent by extent, several at a time: writes
    /// <paramref name="source"/>, or <see cref="Zeros"/> when it is that, or makes holes when it is empty.</summary>
    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> ChangePiecesAsync(ulong start, ulong end, ReadOnlyMemory<byte> source)
    {
        ValueTask<IoStatus>[] under = ArrayPool<ValueTask<IoStatus>>.Shared.Rent(PiecesAtOnce);
        IoStatus status = IoStatus.Ok;
        bool repeats = (ulong)source.Length < end - start;
        int begun = 0, done = 0;
        ulong at = start;
        while (true)
        {
            // A hole where no page is costs nothing. A write that is about to make one there is ordered after this change.
            if (source.IsEmpty && !volume.IsDoubtful) at = Math.Max(at, (ulong)volume.Line.Skip((uint)(at >> Units.ExtentShift)) << Units.ExtentShift);
            bool ends = at >= end || (source.IsEmpty && !volume.IsDoubtful && at >> Units.ExtentShift >= volume.Line.ExtentEnd) || status != IoStatus.Ok;
            if (ends && done == begun) break;
            if (ends || begun - done == PiecesAtOnce)
            {
                IoStatus part = await under[done++ % PiecesAtOnce];
                if (status == IoStatus.Ok) status = part;
                continue;
            }

            int length = (int)Math.Min(end - at, Units.ExtentBytes - at % Units.ExtentBytes);
#pragma warning disable CA2012 // Several at once; each is awaited exactly once above.
            under[begun++ % PiecesAtOnce] = source.IsEmpty
                ? store.ZeroAsync(volume, at, length)
                : store.WriteAsync(volume, at, repeats ? source[..length] : source.Slice((int)(at - start), length));
#pragma warning restore CA2012
            at += (ulong)length;
        }

        ArrayPool<ValueTask<IoStatus>>.Shared.Return(under, clearArray: true);
        return status;
    }

    public async ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes)
    {
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        for (ulong at = offsetBytes; at < offsetBytes + lengthBytes;)
        {
            int start = (int)(at % Units.ExtentBytes);
            int length = (int)Math.Min(offsetBytes + lengthBytes - at, (ulong)(Units.ExtentBytes - start));
            IoBuffer scratch = await buffers.RentAsync(length);
            ReadResult result = await ReadAsync(at, scratch.Slice(0, length));
            scratch.Return();
            if (result.Status != IoStatus.Ok) return result.Status;
            at += (ulong)length;
        }

        return IoStatus.Ok;
    }

    public async ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
    {
        runs.Clear();
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        ulong end = offsetBytes + lengthBytes;
        for (ulong at = offsetBytes; at < end;)
        {
            (IoStatus status, bool hole, ulong pieceEnd) = await store.LookAsync(volume, at, view);
            if (status == IoStatus.Unavailable) return status;
            // What cannot be looked up is not a hole: a read of it tells.
            ulong length = Math.Min(end, pieceEnd) - at;
            if (runs.Count > 0 && runs[^1].IsHole == hole) runs[^1] = new MapRun(runs[^1].LengthBytes + length, hole);
            else if (runs.Count == runsMax) break;
            else runs.Add(new MapRun(length, hole));
            at += length;
        }

        return IoStatus.Ok;
    }

    private IoStatus? Fault(ulong offset, ulong length, bool isBounded)
    {
        if (isBounded && length > Units.RequestBytesMax) return IoStatus.Invalid;
        return offset > SizeBytes || length > SizeBytes - offset ? IoStatus.OutOfRange : null;
    }
}
