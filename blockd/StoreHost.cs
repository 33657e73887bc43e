using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Storage;

namespace BlockServer.Blockd;

/// <summary>A store in service: the file, the store and its loop. Members may be called from any thread but the loop's,
/// except where "on the loop" is said.</summary>
internal sealed class StoreHost : IMoveSide
{
    /// <summary>A disk that has answered nothing for so long hangs: some take this long to find an error.</summary>
    private const long HungMillis = 10_000;

    private readonly DiskFile _file;
    private ulong _answeredSeen;
    private long _answeredAt = Environment.TickCount64;
    private readonly TaskCompletionSource<IoStatus> _givenUp = new(TaskCreationOptions.RunContinuationsAsynchronously);

    private StoreHost(LoopThread thread, DiskFile file, ILayeredStore store, string name)
    {
        Thread = thread;
        _file = file;
        Store = store;
        Name = name;
        StoreId = store.StoreUuid;
    }

    public LoopThread Thread { get; }

    /// <summary>On the loop only.</summary>
    public ILayeredStore Store { get; }

    /// <summary>Its append-only volumes. On the loop only.</summary>
    public IAppendStore Appends => (IAppendStore)Store;

    public string Name { get; }

    public string DiskPath => _file.Path;

    public string? Warning => _file.Warning;

    /// <summary>Requests that the disk has answered: while it grows the disk is alive.</summary>
    public ulong Answered => _file.Answered;

    /// <summary>Requests that the disk has not answered yet.</summary>
    public int InFlight => _file.InFlight;

    /// <summary>What was asked of the disk. On the loop.</summary>
    public DiskCounters Medium => _file.Counters;

    /// <inheritdoc/>
    public Guid StoreId { get; }

    /// <summary>Bytes that data may still use; 0 when the store has failed. On the loop.</summary>
    public ulong FreeBytesNow => Store.State == StoreState.Online ? FreeBytes(Store.GetStats()) : 0;

    /// <summary>A watch of the store for these levels.</summary>
    public SpaceWatch Watch(int percent, int metadataPercent) =>
        new(() => Store.State == StoreState.Online ? Store.GetStats() : null, FreeBytes, percent, metadataPercent);

    /// <summary>Makes an empty store of the whole file or device at <paramref name="path"/>. Throws <see cref="IOException"/> with
    /// a sentence.</summary>
    public static async Task FormatAsync(LoopThread thread, string path, StoreOptions options)
    {
        DiskFile file = DiskFile.Open(thread.Loop, path);
        string? refusal = "the loop has ended";
        try
        {
            await thread.InvokeAsync(async () => refusal = await Storage.Store.FormatAsync(thread.Loop, file, options));
        }
        finally
        {
            await thread.InvokeAsync(() => Close(file));
        }

        if (refusal is not null) throw new IOException($"{path}: {refusal}");
    }

    /// <summary>Opens the store at <paramref name="path"/>, behind a <paramref name="layer"/> when there is one. Throws
    /// <see cref="IOException"/> with a sentence.</summary>
    public static async Task<StoreHost> OpenAsync(
        LoopThread thread, string path, string name, StoreOptions options, Func<IFile, IFile>? layer = null)
    {
        DiskFile file = DiskFile.Open(thread.Loop, path);
        string? refusal = null;
        ILayeredStore? store = null;
        try
        {
            await thread.InvokeAsync(async () =>
            {
                StoreOpenResult opened = await Storage.Store.OpenAsync(thread.Loop, layer?.Invoke(file) ?? file, null, options);
                (store, refusal) = ((ILayeredStore?)opened.Store, opened.Refusal);
            });
        }
        finally
        {
            if (store is null) await thread.InvokeAsync(() => Close(file));
        }

        return store is null ? throw new IOException($"{path}: {refusal}") : new StoreHost(thread, file, store, name);
    }

    /// <inheritdoc/>
    public Task<T> RunAsync<T>(Func<ILayeredStore, ValueTask<T>> work) => Thread.InvokeAsync(() => work(Store));

    /// <summary>The disk answers nothing and is not waited for any more: whoever has asked it for something is answered
    /// Unavailable.</summary>
    public void GiveUp() => _givenUp.TrySetResult(IoStatus.Unavailable);

    private async Task<IoStatus> AskAsync(Func<ValueTask<IoStatus>> work)
    {
        Task<IoStatus> asked = Thread.InvokeAsync(work);
        return await await Task.WhenAny(asked, _givenUp.Task);
    }

    /// <inheritdoc/>
    public Task<ulong?> FreeBytesAsync() => Thread.InvokeAsync(
        () => new ValueTask<ulong?>(Store.State == StoreState.Online ? FreeBytes(Store.GetStats()) : null));

    /// <inheritdoc/>
    public Task<ulong?> PromisableBytesAsync() => Thread.InvokeAsync(
        () => new ValueTask<ulong?>(Store.State == StoreState.Online ? DiskSpace.PromisableBytes(Store.GetStats()) : null));

    /// <inheritdoc/>
    public Task<IoStatus> PromiseAsync(uint volumeId, ulong bytes, bool isForced) =>
        AskAsync(() => Store.PromiseAsync(volumeId, bytes, isForced));

    /// <inheritdoc/>
    public Task ResumeFlatteningAsync() => Thread.InvokeAsync(() =>
    {
        Store.ResumeFlattening();
        return default;
    });

    /// <inheritdoc/>
    public Task<IReadOnlyList<VolumeHead>> ListAsync() =>
        Thread.InvokeAsync(() => new ValueTask<IReadOnlyList<VolumeHead>>([.. Store.Volumes]));

    /// <inheritdoc/>
    public Task<IoStatus> CreateAsync(VolumeHead head) => AskAsync(() => Store.CreateVolumeAsync(head));

    /// <inheritdoc/>
    public Task<IoStatus> UpdateAsync(VolumeHead head) => AskAsync(() => Store.UpdateVolumeAsync(head));

    /// <inheritdoc/>
    public Task<IoStatus> DeleteAsync(uint volumeId) => AskAsync(() => Store.DeleteVolumeAsync(volumeId));

    /// <inheritdoc/>
    public Task<ulong> HighestUsedByteAsync(uint volumeId) => Thread.InvokeAsync(() => Store.HighestUsedByteAsync(volumeId));

    /// <inheritdoc/>
    public Task<VolumeLayers?> LayersAsync(uint volumeId) => Thread.InvokeAsync(() => new ValueTask<VolumeLayers?>(
        // Of a failed store too: what it holds can be read, and moved.
        IsOpen(volumeId) ? new VolumeLayers(Store.Snapshots(volumeId), Store.BaseOf(volumeId), Store.IsFlattening(volumeId)) : null));

    /// <summary>What the API shows of a volume; nothing of one that is not here. On the loop.</summary>
    public VolumeSight Look(uint volumeId)
    {
        if (!IsOpen(volumeId)) return default;
        (uint VolumeId, Guid Snapshot)? basis = Store.BaseOf(volumeId);
        return new VolumeSight(
            Store.State == StoreState.Online ? Store.UsedBytes(volumeId) : null, basis, basis is { } b ? Store.FindSnapshot(b.VolumeId, b.Snapshot)?.Name : null,
            Store.IsFlattening(volumeId), Store.SnapshotCount(volumeId), null);
    }

    private bool IsOpen(uint volumeId) => Store.State != StoreState.Closed && Store.OpenVolume(volumeId) is not null;

    /// <inheritdoc/>
    public Task<CutSight?> SightAsync(uint volumeId, string snapshot) => Thread.InvokeAsync(() => new ValueTask<CutSight?>(
        IsOpen(volumeId) ? new CutSight(Store.FindSnapshot(volumeId, snapshot), Store.IsFlattening(volumeId)) : null));

    /// <inheritdoc/>
    public Task<IoStatus> CutAsync(IReadOnlyList<SnapshotRequest> requests) => AskAsync(() => Store.CreateSnapshotsAsync(requests));

    /// <inheritdoc/>
    public Task<IoStatus> DeleteSnapshotAsync(uint volumeId, Guid snapshot) =>
        AskAsync(() => Store.DeleteSnapshotAsync(volumeId, snapshot));

    /// <inheritdoc/>
    public Task<IoStatus> RollBackAsync(Guid snapshot, SnapshotRequest safety) => AskAsync(() => Store.RollBackAsync(snapshot, safety));

    /// <inheritdoc/>
    public Task<IoStatus> CloneAsync(VolumeHead head, uint volumeId, Guid snapshot) =>
        AskAsync(() => Store.CreateCloneAsync(head, volumeId, snapshot));

    /// <inheritdoc/>
    public Task<IoStatus> FlattenAsync(uint volumeId) => AskAsync(() => Store.FlattenAsync(volumeId));

    /// <summary>Allocated bytes of each of <paramref name="volumeIds"/> that is served, in one visit to the loop; empty when the
    /// store has failed.</summary>
    public Task<Dictionary<uint, ulong>> UsedBytesAsync(IReadOnlyList<uint> volumeIds) =>
        Thread.InvokeAsync(() =>
        {
            var used = new Dictionary<uint, ulong>();
            if (Store.State != StoreState.Online) return new ValueTask<Dictionary<uint, ulong>>(used);
            foreach (uint id in volumeIds)
            {
                if (Store.OpenVolume(id) is not null) used.Add(id, Store.UsedBytes(id));
            }

            return new ValueTask<Dictionary<uint, ulong>>(used);
        });

    /// <summary>The disk as the API shows it.</summary>
    public async Task<DiskInfo> DescribeAsync()
    {
        (StoreStats stats, StoreState state, int volumes) = await Thread.InvokeAsync(
            () => new ValueTask<(StoreStats, StoreState, int)>((Store.GetStats(), Store.State, Store.Volumes.Count)));
        return new DiskInfo(
            StoreId, Name, DiskPath, _file.IsBlockDevice ? "device" : "file", StateWord(state), _file.SizeBytes,
            stats.BlocksTotal * Units.BlockBytes, stats.BlocksUsed * Units.BlockBytes, FreeBytes(stats), stats.SlotsTotal,
            stats.SlotsHeld, stats.MetadataResidentBytes, volumes, stats.ChecksumErrors, stats.IoErrors, stats.BlocksBad, stats.RingOccupancy,
            stats.FailReason, stats.ExtentsScattered, stats.BlocksRelaid * Units.BlockBytes,
            Health: state == StoreState.Failed ? "failed" : IsHung ? "hung" : stats.ChecksumErrors + stats.IoErrors + stats.BlocksBad > 0 ? "failing" : "good");
    }

    /// <summary>Requests are under way, and none has been answered for some seconds. Any thread.</summary>
    public bool IsHung
    {
        get
        {
            long now = Environment.TickCount64;
            lock (_givenUp)
            {
                ulong answered = _file.Answered;
                if (answered != _answeredSeen || _file.InFlight == 0) (_answeredSeen, _answeredAt) = (answered, now);
                return now - _answeredAt >= HungMillis;
            }
        }
    }

    /// <summary>What stands in the four superblocks on the medium: their fields, or why one is not good.</summary>
    public Task<IReadOnlyList<string>> SuperblocksAsync() => Thread.InvokeAsync(ReadSuperblocksAsync);

    private async ValueTask<IReadOnlyList<string>> ReadSuperblocksAsync()
    {
        var found = new List<string>();
        var page = new byte[Units.BlockBytes];
        StoreGeometry? geometry = null;
        for (int copy = 0; copy < 4 && (copy == 0 || geometry is not null); copy++)
        {
            IoStatus status = await _file.ReadAsync(geometry?.SuperblockOffset(copy) ?? 0, page);
            string? fault = Superblock.TryRead(page, out Superblock read);
            if (status == IoStatus.Ok && fault is null) geometry ??= read.Geometry;
            found.Add(status != IoStatus.Ok ? $"cannot be read ({status})" : fault ?? read.ToString());
        }

        return found;
    }

    /// <summary>Closes store and file; the sentence that went wrong, or null.</summary>
    public async Task<string?> CloseAsync()
    {
        IoStatus status = await Thread.InvokeAsync(async () =>
        {
            IoStatus closed = await Store.CloseAsync();
            _file.Close();
            return closed;
        });
        return status == IoStatus.Ok ? null : $"disk {Name} was not closed cleanly ({status}); it recovers at the next start";
    }

    private static ulong FreeBytes(StoreStats stats)
    {
        ulong taken = stats.BlocksUsed + stats.BlocksQuarantined + stats.BlocksKept + stats.BlocksBad;
        return taken >= stats.BlocksTotal ? 0 : (stats.BlocksTotal - taken) * Units.BlockBytes;
    }

    private static ValueTask Close(DiskFile file)
    {
        file.Close();
        return default;
    }

    private static string StateWord(StoreState state) => state switch
    {
        StoreState.Online => "online",
        StoreState.Failed => "failed",
        _ => "closed",
    };
}
