using System.Buffers.Binary;
using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>
/// The simplest store that keeps its promises: every change is appended to one log with a checksum, opening replays the
/// log into RAM. No reuse of space, so only short runs fit. The simulation is tried on it first: what the oracle says
/// about a store this simple is about the oracle. A <see cref="Breakage"/> makes it wrong in the usual ways.
/// </summary>
public sealed class LogStore : IStore
{
    private const int HeaderBytes = 64;

    private readonly SortedDictionary<uint, Content> _volumes = [];
    private readonly Queue<LoopEvent<bool>> _turns = new(); // of flushes, the first is under way
    private readonly ILoop _loop;
    private readonly IFile _file;
    private readonly Durability _durability;
    private readonly Breakage _broken;
    private readonly LinkedList<Append> _appends = [];
    private ulong _end = Units.BlockBytes;
    private ulong _sequence = 1;

    private LogStore(ILoop loop, IFile file, Durability durability, Breakage broken)
    {
        _loop = loop;
        _file = file;
        _durability = durability;
        _broken = broken;
    }

    /// <summary>Ways to be wrong.</summary>
    public enum Breakage
    {
        /// <summary>Right.</summary>
        None,

        /// <summary>Answers before the log write is complete.</summary>
        AckEarly,

        /// <summary>A flush does nothing.</summary>
        NoFlush,

        /// <summary>Replay takes records without looking at their checksum.</summary>
        NoCrc,
    }

    private enum Kind : uint
    {
        Write = 1,
        Zero,
        Head,
        Delete,
    }

    /// <inheritdoc/>
    public Guid StoreUuid => Guid.Empty;

    /// <inheritdoc/>
    public StoreState State { get; private set; }

    /// <inheritdoc/>
    public IReadOnlyList<VolumeHead> Volumes => [.. _volumes.Values.Select(volume => volume.Head)];

    /// <summary>Replays the log.</summary>
    public static async ValueTask<Opened> OpenAsync(ILoop loop, IFile file, Durability durability, Breakage broken)
    {
        var store = new LogStore(loop, file, durability, broken);
        var page = new byte[Units.BlockBytes];
        while (store._end < file.SizeBytes)
        {
            if (await file.ReadAsync(store._end, page) != IoStatus.Ok) return new Opened(null, "the log cannot be read");
            if (BinaryPrimitives.ReadUInt64LittleEndian(page.AsSpan(8)) != store._sequence) break;
            int pages = BinaryPrimitives.ReadInt32LittleEndian(page.AsSpan(4));
            if (pages <= 0 || (ulong)pages * Units.BlockBytes > file.SizeBytes - store._end) break;
            var record = new byte[pages * Units.BlockBytes];
            if (await file.ReadAsync(store._end, record) != IoStatus.Ok) return new Opened(null, "the log cannot be read");
            if (Crc32C.Compute(record.AsSpan(4)) != BinaryPrimitives.ReadUInt32LittleEndian(record) && broken != Breakage.NoCrc) break;
            store.Apply(record);
            store._end += (ulong)record.Length;
            store._sequence++;
        }

        // What follows may hold records that a crash left beyond a hole: they must never count again.
        var zeros = new byte[Units.ExtentBytes];
        for (ulong at = store._end; at < Math.Min(file.SizeBytes, store._end + 64 * Units.MiB); at += (ulong)zeros.Length)
        {
            int length = (int)Math.Min((ulong)zeros.Length, file.SizeBytes - at);
            await file.ReadAsync(at, zeros.AsMemory(0, length));
            if (zeros.AsSpan(0, length).IndexOfAnyExcept((byte)0) < 0) break;
            zeros.AsSpan().Clear();
            await file.WriteAsync(at, zeros.AsMemory(0, length));
        }

        return await file.FlushAsync() == IoStatus.Ok ? new Opened(store, null) : new Opened(null, "flush failed");
    }

    /// <inheritdoc/>
    public StoreStats GetStats() => new()
    {
        BlocksTotal = _file.SizeBytes / Units.BlockBytes,
        BlocksUsed = (ulong)_volumes.Values.Sum(volume => (long)UsedBytes(volume.Head.Id)) / Units.BlockBytes,
        BlocksQuarantined = 0,
        BlocksFree = _file.SizeBytes / Units.BlockBytes,
        BlocksReserved = 0,
        SlotsTotal = 0,
        SlotsUsed = 0,
        MetadataResidentBytes = 0,
        MetadataBudgetBytes = 0,
        RingOccupancy = 0,
        Checkpoints = 0,
        ChecksumErrors = 0,
        IoErrors = 0,
        FailReason = State == StoreState.Failed ? "a log write failed" : null,
    };

    /// <inheritdoc/>
    public ValueTask<IoStatus> CreateVolumeAsync(VolumeHead head) => AppendAsync(Kind.Head, head.Id, 0, 0, HeadBytes(head), isDurable: true);

    /// <inheritdoc/>
    public ValueTask<IoStatus> UpdateVolumeAsync(VolumeHead head) => CreateVolumeAsync(head);

    /// <inheritdoc/>
    public ValueTask<IoStatus> DeleteVolumeAsync(uint volumeId) => AppendAsync(Kind.Delete, volumeId, 0, 0, default, isDurable: true);

    /// <inheritdoc/>
    public IBlockDevice? OpenVolume(uint volumeId) => _volumes.ContainsKey(volumeId) ? new Device(this, volumeId) : null;

    /// <inheritdoc/>
    public ulong UsedBytes(uint volumeId) => (ulong)_volumes[volumeId].Bytes.Length / Units.BlockBytes * Units.BlockBytes;

    /// <inheritdoc/>
    public ValueTask<ulong> HighestUsedByteAsync(uint volumeId) => new(UsedBytes(volumeId));

    /// <inheritdoc/>
    public async ValueTask<IoStatus> FlushAsync()
    {
        if (State != StoreState.Online) return IoStatus.Unavailable;
        if (_broken == Breakage.NoFlush) return IoStatus.Ok;
        // One at a time: a flush that ends well beside one that failed proves nothing, the medium may have dropped what both cover.
        var turn = new LoopEvent<bool>();
        _turns.Enqueue(turn);
        if (_turns.Count > 1) await turn.WaitAsync();
        IoStatus status = State == StoreState.Failed ? IoStatus.Unavailable : await _file.FlushAsync();
        if (status != IoStatus.Ok) State = StoreState.Failed;
        _turns.Dequeue();
        if (_turns.TryPeek(out LoopEvent<bool>? next)) next.Set(true);
        return State == StoreState.Failed ? IoStatus.Unavailable : status;
    }

    /// <inheritdoc/>
    public ValueTask<ScrubReport> ScrubAsync(
        uint? volumeId, ulong bytesPerSecond, Action<ScrubReport>? progress, CancellationToken cancel, ulong position = 0) =>
        new(new ScrubReport(0, 0, [], true));

    /// <inheritdoc/>
    public async ValueTask<IoStatus> CloseAsync()
    {
        IoStatus status = await _file.FlushAsync();
        State = StoreState.Closed;
        return status;
    }

    private static byte[] HeadBytes(VolumeHead head)
    {
        var bytes = new byte[24 + head.Name.Length];
        head.Uuid.TryWriteBytes(bytes);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes.AsSpan(16), head.SizeBytes);
        System.Text.Encoding.ASCII.GetBytes(head.Name, bytes.AsSpan(24));
        return bytes;
    }

    private async ValueTask<IoStatus> AppendAsync(
        Kind kind, uint volume, ulong offset, ulong length, ReadOnlyMemory<byte> data, bool isDurable)
    {
        if (State != StoreState.Online) return IoStatus.Unavailable;
        int bytes = (HeaderBytes + data.Length + Units.BlockBytes - 1) / Units.BlockBytes * Units.BlockBytes;
        if (_end + (ulong)bytes > _file.SizeBytes) return IoStatus.NoSpace;
        var record = new byte[bytes];
        BinaryPrimitives.WriteInt32LittleEndian(record.AsSpan(4), bytes / Units.BlockBytes);
        BinaryPrimitives.WriteUInt64LittleEndian(record.AsSpan(8), _sequence++);
        BinaryPrimitives.WriteUInt32LittleEndian(record.AsSpan(16), (uint)kind);
        BinaryPrimitives.WriteUInt32LittleEndian(record.AsSpan(20), volume);
        BinaryPrimitives.WriteUInt64LittleEndian(record.AsSpan(24), offset);
        BinaryPrimitives.WriteUInt64LittleEndian(record.AsSpan(32), length);
        BinaryPrimitives.WriteInt32LittleEndian(record.AsSpan(40), data.Length);
        data.Span.CopyTo(record.AsSpan(HeaderBytes));
        BinaryPrimitives.WriteUInt32LittleEndian(record, Crc32C.Compute(record.AsSpan(4)));
        var append = new Append(record);
        LinkedListNode<Append> node = _appends.AddLast(append);
        ulong at = _end;
        _end += (ulong)bytes;
        ValueTask<IoStatus> writing = _file.WriteAsync(at, record);
        if (_broken == Breakage.AckEarly)
        {
            Apply(record);
            append.IsApplied = true;
        }

        IoStatus status = _broken == Breakage.AckEarly ? await AckEarlyAsync(writing) : await writing;
        if (status != IoStatus.Ok) State = StoreState.Failed;
        append.IsComplete = true;
        while (_appends.First is { Value.IsComplete: true } first && State == StoreState.Online)
        {
            _appends.RemoveFirst();
            if (!first.Value.IsApplied) Apply(first.Value.Record);
            first.Value.IsApplied = true;
            first.Value.Applied.Set(true);
        }

        while (State == StoreState.Failed && _appends.First is { Value.IsComplete: true } first)
        {
            _appends.RemoveFirst();
            first.Value.Applied.Set(false);
        }

        if (!await node.Value.Applied.WaitAsync()) return IoStatus.Unavailable;
        return isDurable || _durability == Durability.Ack ? await FlushAsync() : IoStatus.Ok;
    }

    private async ValueTask<IoStatus> AckEarlyAsync(ValueTask<IoStatus> writing)
    {
        _ = writing.AsTask();
        await _loop.DelayAsync(10);
        return IoStatus.Ok;
    }

    private void Apply(byte[] record)
    {
        var kind = (Kind)BinaryPrimitives.ReadUInt32LittleEndian(record.AsSpan(16));
        uint id = BinaryPrimitives.ReadUInt32LittleEndian(record.AsSpan(20));
        ulong offset = BinaryPrimitives.ReadUInt64LittleEndian(record.AsSpan(24));
        ulong length = BinaryPrimitives.ReadUInt64LittleEndian(record.AsSpan(32));
        ReadOnlySpan<byte> data = record.AsSpan(HeaderBytes, BinaryPrimitives.ReadInt32LittleEndian(record.AsSpan(40)));
        if (kind == Kind.Head)
        {
            string name = System.Text.Encoding.ASCII.GetString(data[24..]);
            var head = new VolumeHead(id, new Guid(data[..16]), name, BinaryPrimitives.ReadUInt64LittleEndian(data[16..]), 1);
            byte[] old = _volumes.TryGetValue(id, out Content? content) ? content.Bytes : [];
            var grown = new byte[head.SizeBytes];
            old.AsSpan(0, Math.Min(old.Length, grown.Length)).CopyTo(grown);
            _volumes[id] = new Content(head, grown);
        }
        else if (kind == Kind.Delete)
        {
            _volumes.Remove(id);
        }
        else if (_volumes.TryGetValue(id, out Content? content) && offset + length <= (ulong)content.Bytes.Length)
        {
            Span<byte> range = content.Bytes.AsSpan((int)offset, (int)length);
            if (kind == Kind.Write) data.CopyTo(range);
            else range.Clear();
        }
    }

    private sealed record Content(VolumeHead Head, byte[] Bytes);

    private sealed class Append(byte[] record)
    {
        public byte[] Record { get; } = record;

        public bool IsComplete { get; set; }

        public bool IsApplied { get; set; }

        public LoopEvent<bool> Applied { get; } = new();
    }

    private sealed class Device(LogStore store, uint id) : IBlockDevice
    {
        public ulong SizeBytes => store._volumes.TryGetValue(id, out Content? content) ? content.Head.SizeBytes : 0;

        public bool IsReadOnly => false;

        public async ValueTask<ReadResult> ReadAsync(ulong offsetBytes, Memory<byte> target)
        {
            await store._loop.DelayAsync(1_000);
            if (!store._volumes.TryGetValue(id, out Content? content)) return IoStatus.Unavailable;
            if (offsetBytes + (ulong)target.Length > SizeBytes) return IoStatus.OutOfRange;
            content.Bytes.AsMemory((int)offsetBytes, target.Length).CopyTo(target);
            return IoStatus.Ok;
        }

        public async ValueTask<IoStatus> WriteAsync(ulong offsetBytes, ReadOnlyMemory<byte> source, WriteFlags flags) =>
            Check(offsetBytes, (ulong)source.Length)
            ?? await store.AppendAsync(
                Kind.Write, id, offsetBytes, (ulong)source.Length, source, flags.HasFlag(WriteFlags.Fua));

        public ValueTask<IoStatus> FlushAsync() => store.FlushAsync();

        public ValueTask<IoStatus> TrimAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags)
        {
            ulong first = (offsetBytes + Units.BlockBytes - 1) / Units.BlockBytes * Units.BlockBytes;
            ulong end = (offsetBytes + lengthBytes) / Units.BlockBytes * Units.BlockBytes;
            return first < end ? WriteZeroesAsync(first, end - first, flags) : new(IoStatus.Ok);
        }

        public async ValueTask<IoStatus> WriteZeroesAsync(ulong offsetBytes, ulong lengthBytes, WriteFlags flags) =>
            Check(offsetBytes, lengthBytes)
            ?? await store.AppendAsync(Kind.Zero, id, offsetBytes, lengthBytes, default, flags.HasFlag(WriteFlags.Fua));

        public ValueTask<IoStatus> PrefetchAsync(ulong offsetBytes, ulong lengthBytes) => new(IoStatus.Ok);

        public ValueTask<IoStatus> MapAsync(ulong offsetBytes, ulong lengthBytes, int runsMax, List<MapRun> runs)
        {
            runs.Clear();
            runs.Add(new MapRun(lengthBytes, IsHole: false));
            return new(IoStatus.Ok);
        }

        private IoStatus? Check(ulong offset, ulong length) =>
            SizeBytes == 0 ? IoStatus.Unavailable : offset + length > SizeBytes ? IoStatus.OutOfRange : null;
    }
}

/// <summary>Drives a <see cref="LogStore"/>.</summary>
public sealed class LogStoreDriver(LogStore.Breakage broken = LogStore.Breakage.None) : StoreDriver
{
    /// <inheritdoc/>
    public override string Arguments => " --store log";

    /// <inheritdoc/>
    public override ulong MediumBytes => 256 * Units.MiB;

    /// <inheritdoc/>
    public override ValueTask<string?> FormatAsync(ILoop loop, IFile file, int ring) => new((string?)null);

    /// <inheritdoc/>
    public override ValueTask<Opened> OpenAsync(ILoop loop, IFile file, IFile? log, Durability durability, bool awaitsPromises = false) =>
        LogStore.OpenAsync(loop, file, durability, broken);
}
