using BlockServer.Core;

namespace BlockServer.Streams;

/// <summary>
/// Walks through a snapshot or a volume, all of it or what has changed since an older snapshot, and reads it batch by batch.
/// Lives on the store's loop.
/// </summary>
public sealed class SnapshotReader
{
    private const int RunsMax = 256;

    private readonly ILayeredStore _store;
    private readonly uint _volumeId;
    private readonly Guid? _base;
    private readonly Guid? _target;
    private readonly IBlockDevice _device;
    private readonly List<DiffRun> _changes = [];
    private readonly List<MapRun> _map = [];
    private readonly Queue<StreamPiece> _ahead = new();
    private ulong _planned;

    private SnapshotReader(ILayeredStore store, uint volumeId, Guid? basis, Guid? target, IBlockDevice device, ulong offsetBytes)
    {
        (_store, _volumeId, _base, _target, _device) = (store, volumeId, basis, target, device);
        SizeBytes = device.SizeBytes;
        OffsetBytes = _planned = offsetBytes;
    }

    /// <summary>Size of the snapshot.</summary>
    public ulong SizeBytes { get; }

    /// <summary>Everything in front of it was answered.</summary>
    public ulong OffsetBytes { get; private set; }

    /// <summary>Begins at <paramref name="offsetBytes"/>; null when there is no such snapshot.</summary>
    public static SnapshotReader? Open(ILayeredStore store, uint volumeId, Guid? basis, Guid target, ulong offsetBytes) =>
        store.OpenSnapshot(volumeId, target) is { } device && offsetBytes <= device.SizeBytes
            ? new SnapshotReader(store, volumeId, basis, target, device, offsetBytes) : null;

    /// <summary>As <see cref="Open"/>, for what is written now: nobody may write meanwhile. <paramref name="basis"/> may be what
    /// the volume was cloned from.</summary>
    public static SnapshotReader? OpenLive(ILayeredStore store, uint volumeId, Guid? basis) =>
        store.OpenVolume(volumeId) is { } device ? new SnapshotReader(store, volumeId, basis, null, device, 0) : null;

    /// <summary>Fills <paramref name="batch"/> with what comes next; empty at the end. Errors: as
    /// <see cref="IBlockDevice.ReadAsync"/> and <see cref="ILayeredStore.DiffAsync"/>; NotFound when a snapshot is gone.</summary>
    public async ValueTask<IoStatus> FillAsync(StreamBatch batch)
    {
        batch.Clear();
        IoStatus status = IoStatus.Ok;
        while (status == IoStatus.Ok)
        {
            if (_ahead.Count == 0)
            {
                if (_planned == SizeBytes) break;
                status = await PlanAsync();
                continue;
            }

            StreamPiece piece = _ahead.Peek();
            if (!batch.HasRoom(piece.Kind == StreamKind.Data ? piece.LengthBytes : 0)) break;
            batch.Add(piece.Kind, piece.OffsetBytes, piece.LengthBytes);
            _ahead.Dequeue();
        }

        // All are waited for, also behind a failure: they write into the batch.
        ValueTask<ReadResult>[] reads =
            [.. batch.Pieces.Where(piece => piece.Kind == StreamKind.Data).Select(piece => _device.ReadAsync(piece.OffsetBytes, batch.DataOf(piece)))];
        foreach (ValueTask<ReadResult> read in reads)
        {
            ReadResult result = await read;
            if (status == IoStatus.Ok) status = result.Status;
        }

        OffsetBytes = _ahead.Count > 0 ? _ahead.Peek().OffsetBytes : _planned;
        return status;
    }

    /// <summary>Where the first block lies that <see cref="FillAsync"/> could not read: each is read by itself. The first of the batch
    /// when all can be read now. Overwrites the batch's data.</summary>
    public async ValueTask<ulong> FindBadAsync(StreamBatch batch)
    {
        foreach (StreamPiece piece in batch.Pieces.Where(piece => piece.Kind == StreamKind.Data))
        {
            Memory<byte> data = batch.DataOf(piece);
            for (int at = 0; at < data.Length; at += Units.BlockBytes)
            {
                Memory<byte> block = data.Slice(at, Math.Min(Units.BlockBytes, data.Length - at));
                if ((await _device.ReadAsync(piece.OffsetBytes + (ulong)at, block)).Status != IoStatus.Ok) return piece.OffsetBytes + (ulong)at;
            }
        }

        return batch.Pieces.Count > 0 ? batch.Pieces[0].OffsetBytes : OffsetBytes;
    }

    /// <summary>Looks at the map of what comes next, without reading data.</summary>
    private async ValueTask<IoStatus> PlanAsync()
    {
        if (_base is null) return await MapAsync(SizeBytes - _planned);
        if (_store.Snapshots(_volumeId) is var known && (!IsThere(known, _base) || !IsThere(known, _target))) return IoStatus.NotFound;
        // What is behind the target's end goes with its size.
        IoStatus status = await _store.DiffAsync(_volumeId, _base, _target, _planned, SizeBytes - _planned, RunsMax, _changes);
        for (int i = 0; i < _changes.Count && status == IoStatus.Ok; i++)
        {
            DiffRun run = _changes[i];
            ulong end = _planned + run.LengthBytes;
            if (!run.IsChanged) _planned = end;
            while (_planned < end && status == IoStatus.Ok) status = await MapAsync(end - _planned);
        }

        return status;
    }

    private bool IsThere(IReadOnlyList<SnapshotInfo> known, Guid? snapshot) =>
        snapshot is null || known.Any(s => s.Uuid == snapshot) || _store.BaseOf(_volumeId)?.Snapshot == snapshot;

    private async ValueTask<IoStatus> MapAsync(ulong lengthBytes)
    {
        IoStatus status = await _device.MapAsync(_planned, lengthBytes, RunsMax, _map);
        if (status != IoStatus.Ok) return status;
        foreach (MapRun run in _map)
        {
            ulong end = _planned + run.LengthBytes;
            if (run.IsHole)
            {
                _ahead.Enqueue(new StreamPiece(StreamKind.Hole, _planned, run.LengthBytes));
                _planned = end;
            }

            // Along the extents, so that no frame needs more than one page of the map.
            while (_planned < end)
            {
                ulong next = Math.Min(end, (_planned / StreamHeader.DataBytesMax + 1) * StreamHeader.DataBytesMax);
                _ahead.Enqueue(new StreamPiece(StreamKind.Data, _planned, next - _planned));
                _planned = next;
            }
        }

        return IoStatus.Ok;
    }
}
