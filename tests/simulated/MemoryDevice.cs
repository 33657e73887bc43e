using BlockServer.Core;

namespace BlockServer.Tests.Simulated;

/// <summary>
/// A disk in RAM with holes, for protocol tests; the slow and obvious one. Without a loop it answers at once; with one
/// after a drawn delay, so that requests finish out of order (effects happen when the answer does).
/// </summary>
public sealed class MemoryDevice(ulong sizeBytes, SimLoop? loop = null) : IBlockDevice
{
    private readonly Dictionary<ulong, byte[]> _blocks = [];

    /// <inheritdoc/>
    public ulong SizeBytes { get; set; } = sizeBytes;

    /// <inheritdoc/>
    public bool IsReadOnly { get; set; }

    /// <summary>What every request answers instead of doing anything; null for normal.</summary>
    public IoStatus? Fails { get; set; }

    /// <summary>Every request throws.</summary>
    public bool IsBroken { get; set; }

    /// <summary>While true, requests (on a loop) are started but not answered until it is false again.</summary>
    public bool IsStuck { get; set; }

    /// <summary>WRITE ZEROES with FastOnly is refused.</summary>
    public bool HasNoFastZero { get; set; }

    /// <summary>Flags of the last change.</summary>
    public WriteFlags LastFlags { get; private set; }

    /// <summary>Flushes so far.</summary>
    public int Flushes { get; private set; }

    /// <summary>Requests begun and not answered.</summary>
    public int InFlight { get; private set; }

    /// <summary>Most requests in flight at one time.</summary>
    public int InFlightMax { get; private set; }

    /// <inheritdoc/>
    public ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
    {
        return loop is null ? new ValueTask<ReadResult>(Read(offsetBytes, target.Span)) : ReadLater(offsetBytes, target);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags)
    {
        return loop is null
            ? new ValueTask<IoStatus>(Write(offsetBytes, source.Span, flags)) : WriteLater(offsetBytes, source, flags);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync()
    {
        Flushes++;
        return loop is null ? new ValueTask<IoStatus>(Fails ?? IoStatus.Ok) : Later(() => Fails ?? IoStatus.Ok);
    }

    /// <inheritdoc/>
    public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        Answer(() => Zero(offsetBytes, lengthBytes, flags, wholeBlocksOnly: true));

    /// <inheritdoc/>
    public ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
        Answer(() => (flags & WriteFlags.FastOnly) != 0 && HasNoFastZero
            ? IoStatus.NotSupported : Zero(offsetBytes, lengthBytes, flags, wholeBlocksOnly: false));

    /// <inheritdoc/>
    public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) =>
        Answer(() => Fault(offsetBytes, lengthBytes));

    /// <inheritdoc/>
    public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs) =>
        Answer(() => Map(offsetBytes, lengthBytes, runsMax, runs));

    // Apart from the direct answers, which then allocate no closure.
    private ValueTask<ReadResult> ReadLater(ulong offset, Memory<byte> target) =>
        Later(() => Read(offset, target.Span));

    private ValueTask<IoStatus> WriteLater(ulong offset, ReadOnlyMemory<byte> source, WriteFlags flags) =>
        Later(() => Write(offset, source.Span, flags));

    private IoStatus Fault(ulong offset, ulong length)
    {
        if (IsBroken) throw new InvalidOperationException("broken on purpose");
        return Fails ?? (offset > SizeBytes || length > SizeBytes - offset ? IoStatus.OutOfRange : IoStatus.Ok);
    }

    private ReadResult Read(ulong offset, Span<byte> target)
    {
        IoStatus fault = Fault(offset, (ulong)target.Length);
        if (fault != IoStatus.Ok) return fault;
        bool hasHoles = false;
        while (!target.IsEmpty)
        {
            int inBlock = (int)(offset % Units.BlockBytes);
            int count = Math.Min(target.Length, Units.BlockBytes - inBlock);
            if (_blocks.TryGetValue(offset / Units.BlockBytes, out byte[]? block))
            {
                block.AsSpan(inBlock, count).CopyTo(target);
            }
            else
            {
                hasHoles = true;
                target[..count].Clear();
            }

            offset += (ulong)count;
            target = target[count..];
        }

        return new ReadResult(IoStatus.Ok, hasHoles);
    }

    private IoStatus Write(ulong offset, ReadOnlySpan<byte> source, WriteFlags flags)
    {
        IoStatus fault = IsReadOnly ? IoStatus.ReadOnly : Fault(offset, (ulong)source.Length);
        if (fault != IoStatus.Ok) return fault;
        LastFlags = flags;
        while (!source.IsEmpty)
        {
            int inBlock = (int)(offset % Units.BlockBytes);
            int count = Math.Min(source.Length, Units.BlockBytes - inBlock);
            source[..count].CopyTo(BlockAt(offset / Units.BlockBytes).AsSpan(inBlock));
            offset += (ulong)count;
            source = source[count..];
        }

        return IoStatus.Ok;
    }

    private IoStatus Zero(ulong offset, ulong length, WriteFlags flags, bool wholeBlocksOnly)
    {
        IoStatus fault = IsReadOnly ? IoStatus.ReadOnly : Fault(offset, length);
        if (fault != IoStatus.Ok) return fault;
        LastFlags = flags;
        ulong end = offset + length;
        while (offset < end)
        {
            int inBlock = (int)(offset % Units.BlockBytes);
            int count = (int)Math.Min(end - offset, (ulong)(Units.BlockBytes - inBlock));
            ulong index = offset / Units.BlockBytes;
            if (count == Units.BlockBytes && (flags & WriteFlags.NoHole) == 0) _blocks.Remove(index);
            else if (!wholeBlocksOnly) BlockAt(index).AsSpan(inBlock, count).Clear();
            offset += (ulong)count;
        }

        return IoStatus.Ok;
    }

    private IoStatus Map(ulong offset, ulong length, int runsMax, List<MapRun> runs)
    {
        runs.Clear();
        IoStatus fault = Fault(offset, length);
        if (fault != IoStatus.Ok) return fault;
        ulong end = offset + length;
        while (offset < end)
        {
            ulong count = Math.Min(end - offset, Units.BlockBytes - offset % Units.BlockBytes);
            bool isHole = !_blocks.ContainsKey(offset / Units.BlockBytes);
            if (runs.Count > 0 && runs[^1].IsHole == isHole)
                runs[^1] = new MapRun(runs[^1].LengthBytes + count, isHole);
            else if (runs.Count == runsMax) break;
            else runs.Add(new MapRun(count, isHole));
            offset += count;
        }

        return IoStatus.Ok;
    }

    private byte[] BlockAt(ulong index)
    {
        if (!_blocks.TryGetValue(index, out byte[]? block)) _blocks[index] = block = new byte[Units.BlockBytes];
        return block;
    }

    private ValueTask<IoStatus> Answer(Func<IoStatus> effect) => loop is null ? new ValueTask<IoStatus>(effect()) : Later(effect);

    private ValueTask<T> Later<T>(Func<T> effect)
    {
        var done = new LoopEvent<T>();
        InFlightMax = Math.Max(InFlightMax, ++InFlight);
        Try();
        return done.WaitAsync();

        void Try() => loop!.Schedule(1_000 + loop.Random.NextBelow(100_000UL), () =>
        {
            if (IsStuck)
            {
                Try();
                return;
            }

            InFlight--;
            done.Set(effect());
        });
    }
}
