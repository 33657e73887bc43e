using System.Buffers;
using System.Runtime.CompilerServices;
using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>A volume as a disk: cuts requests into extents. Lives on the store's loop.</summary>
internal sealed class VolumeDevice(Store store, Volume volume, BufferPool buffers) : IBlockDevice
{
    // Holes of one request that are under way at a time.
    private const int HolesAtOnce = 32;
    private static readonly byte[] Zeros = GC.AllocateArray<byte>(Units.ExtentBytes, pinned: true);

    public ulong SizeBytes => volume.Head.SizeBytes;

    public bool IsReadOnly => false;

    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        if (Fault(offsetBytes, (ulong)target.Length, true) is { } fault) return new(fault);
        return (offsetBytes % Units.ExtentBytes) + (ulong)target.Length <= Units.ExtentBytes
            ? ReadExtentAsync(offsetBytes, target)
            : ReadExtentsAsync(offsetBytes, target);
    }

    private ValueTask<ReadResult> ReadExtentAsync(ulong offset, Memory<byte> target)
    {
        uint extent = (uint)(offset >> Units.ExtentShift);
        int start = (int)(offset % Units.ExtentBytes);
        return (start | target.Length) % Units.BlockBytes == 0
            ? store.ReadBlocksAsync(volume, extent, start >> Units.BlockShift, target.Length >> Units.BlockShift, target)
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
            volume, extent, first, count, bounce.Slice(0, count << Units.BlockShift));
        bounce.Slice(start - (first << Units.BlockShift), target.Length).CopyTo(target);
        bounce.Return();
        return result;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    public async ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        if (Fault(offsetBytes, (ulong)source.Length, true) is { } fault) return fault;
        if (source.Length == 0) return IoStatus.Ok;
        IoStatus status = (offsetBytes % Units.ExtentBytes) + (ulong)source.Length <= Units.ExtentBytes
            ? await store.ChangeExtentAsync(
                volume, (uint)(offsetBytes >> Units.ExtentShift), (int)(offsetBytes % Units.ExtentBytes), source.Length, source)
            : await WriteExtentsAsync(offsetBytes, source);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    [AsyncMethodBuilder(typeof(LoopMethodBuilder<>))]
    private async ValueTask<IoStatus> WriteExtentsAsync(ulong offsetBytes, ReadOnlyMemory<byte> source)
    {
        ValueTask<IoStatus>[] parts = ArrayPool<ValueTask<IoStatus>>.Shared.Rent(source.Length / Units.ExtentBytes + 2);
        int count = 0;
        for (int done = 0; done < source.Length;)
        {
            ulong at = offsetBytes + (ulong)done;
            int start = (int)(at % Units.ExtentBytes);
            int length = Math.Min(source.Length - done, Units.ExtentBytes - start);
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
            parts[count++] = store.ChangeExtentAsync(
                volume, (uint)(at >> Units.ExtentShift), start, length, source.Slice(done, length));
#pragma warning restore CA2012
            done += length;
        }

        IoStatus status = IoStatus.Ok;
        for (int i = 0; i < count; i++)
        {
            IoStatus part = await parts[i];
            if (status == IoStatus.Ok) status = part;
        }

        ArrayPool<ValueTask<IoStatus>>.Shared.Return(parts, clearArray: true);
        return status;
    }

    public ValueTask<IoStatus> FlushAsync() => volume.IsDeleting ? new(IoStatus.Unavailable) : store.FlushAsync();

    public async ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        const ulong mask = Units.BlockBytes - 1;
        ulong start = (offsetBytes + mask) & ~mask;
        ulong end = (offsetBytes + lengthBytes) & ~mask;
        IoStatus status = end <= start ? IoStatus.Ok : await HolesAsync(start, end);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    public async ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
    {
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return fault;
        bool noHole = (flags & WriteFlags.NoHole) != 0;
        if (noHole && (flags & WriteFlags.FastOnly) != 0) return IoStatus.NotSupported;
        const ulong mask = Units.BlockBytes - 1;
        ulong end = offsetBytes + lengthBytes;
        ulong innerStart = noHole ? end : Math.Min(end, (offsetBytes + mask) & ~mask);
        ulong innerEnd = noHole ? end : Math.Max(innerStart, end & ~mask);
        IoStatus status = await ZerosAsync(offsetBytes, innerStart);
        if (status == IoStatus.Ok && innerEnd > innerStart) status = await HolesAsync(innerStart, innerEnd);
        if (status == IoStatus.Ok) status = await ZerosAsync(innerEnd, end);
        return status == IoStatus.Ok ? await store.SettleAsync(flags) : status;
    }

    private async ValueTask<IoStatus> ZerosAsync(ulong start, ulong end)
    {
        while (start < end)
        {
            int from = (int)(start % Units.ExtentBytes);
            int length = (int)Math.Min(end - start, (ulong)(Units.ExtentBytes - from));
            IoStatus status = await store.ChangeExtentAsync(
                volume, (uint)(start >> Units.ExtentShift), from, length, Zeros.AsMemory(0, length));
            if (status != IoStatus.Ok) return status;
            start += (ulong)length;
        }

        return IoStatus.Ok;
    }

    /// <summary>Makes holes of whole blocks, many extents at a time; extents without a page cost nothing.</summary>
    internal async ValueTask<IoStatus> HolesAsync(ulong start, ulong end)
    {
        var under = new Queue<ValueTask<IoStatus>>();
        IoStatus status = IoStatus.Ok;
        ulong limit = (ulong)volume.ExtentEnd << Units.ExtentShift;
        // An extent that a write is about to create is locked, but has its slot already or is ordered after this trim.
        while (start < Math.Min(end, limit))
        {
            uint extent = volume.Skip((uint)(start >> Units.ExtentShift));
            start = Math.Max(start, (ulong)extent << Units.ExtentShift);
            if (start >= end) break;
            int from = (int)(start % Units.ExtentBytes);
            int length = (int)Math.Min(end - start, (ulong)(Units.ExtentBytes - from));
#pragma warning disable CA2012 // Several at once; each is awaited exactly once below.
            under.Enqueue(store.ChangeExtentAsync(volume, extent, from, length, default));
#pragma warning restore CA2012
            start += (ulong)length;
            if (under.Count == HolesAtOnce) Note(await under.Dequeue());
        }

        while (under.Count > 0) Note(await under.Dequeue());
        return status;

        void Note(IoStatus part) => status = status == IoStatus.Ok ? part : status;
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

    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
    {
        runs.Clear();
        if (Fault(offsetBytes, lengthBytes, false) is { } fault) return new(fault);
        ulong end = offsetBytes + lengthBytes;
        for (ulong at = offsetBytes; at < end;)
        {
            bool hole = store.IsHole(volume, at, out ulong pieceEnd);
            ulong length = Math.Min(end, pieceEnd) - at;
            if (runs.Count > 0 && runs[^1].IsHole == hole) runs[^1] = new MapRun(runs[^1].LengthBytes + length, hole);
            else if (runs.Count == runsMax) break;
            else runs.Add(new MapRun(length, hole));
            at += length;
        }

        return new(IoStatus.Ok);
    }

    private IoStatus? Fault(ulong offset, ulong length, bool isBounded)
    {
        if (isBounded && length > Units.RequestBytesMax) return IoStatus.Invalid;
        return offset > SizeBytes || length > SizeBytes - offset ? IoStatus.OutOfRange : null;
    }
}
