using BlockServer.Core;

namespace BlockServer.Storage;

/// <summary>
/// One file or raw device that holds volumes: redirect on write at 4 KiB with a redo record written in parallel
/// (engine B1). Lives on one loop.
/// </summary>
public sealed partial class Store : ILayeredStore, IAppendStore, IAppendCopy
{
    private readonly ILoop _loop;
    private readonly IFile _file;
    private readonly IFile _log;
    private readonly StoreOptions _options;
    private readonly StoreGeometry _geometry;
    private readonly uint _fold;
    private readonly BufferPool _pool = new(256 << 20);
    private readonly SlotTable _slots;
    private readonly BlockAllocator _blocks;
    private readonly SortedDictionary<uint, Volume> _volumes = [];
    private readonly RangeLocks _locks = new();
    private readonly List<Volume> _interrupted = []; // of which something that takes room waits for ResumeFlattening
    private readonly uint _reserve;
    private Superblock _superblock;
    private ulong _nextVersion = 1;
    private ulong _checksumErrors;
    private ulong _ioErrors;
    private ulong _used;
    private string? _failReason;
    private int _active;
    private bool _isClosing;

    private Store(ILoop loop, IFile file, IFile? logFile, StoreOptions options, Superblock superblock)
    {
        _loop = loop;
        _file = file;
        _log = logFile ?? file;
        _options = options;
        _superblock = superblock;
        _geometry = superblock.Geometry;
        _fold = Seal.Fold(superblock.StoreUuid);
        _slots = new SlotTable(_geometry.SlotCount, options.MetadataBudgetBytes) { Relieved = OnFramesRelieved };
        _blocks = new BlockAllocator(_geometry.DataStart, _geometry.DataBlocks) { PrefersReturned = options.ReusesSoon };
        StoreCapacity capacity = StoreCapacity.Of(_geometry, options.ProtectPercent);
        (_reserve, _blocksKept, _slotsKept) = (capacity.ReserveBlocks, capacity.KeptBlocks, capacity.KeptSlots);
        _closeHook = new TurnEndHook(WriteLog);
        _flushHook = new TurnEndHook(StartFlush);
        _frameHook = new TurnEndHook(WakeFrameWaiters);
        _flushTimer = loop.CreateTimer(StartTidy);
        _tidyHook = new TurnEndHook(StartTidy);
        _finishTidy = FinishTidy;
        _wakeRing = WakeOneRingWaiter;
        _finishFlush = FinishFlush;
        _scattered = new BitTree((int)_geometry.SlotCount);
        _relayTimer = loop.CreateTimer(StartRelayout);
        _finishRelayout = FinishRelayout;
    }

    /// <inheritdoc/>
    public Guid StoreUuid => _superblock.StoreUuid;

    /// <inheritdoc/>
    public StoreState State { get; private set; }

    /// <inheritdoc/>
    public IReadOnlyList<VolumeHead> Volumes => [.. _volumes.Values.Where(v => !v.IsDeleting).Select(v => v.Head)];

    /// <inheritdoc/>
    public StoreStats GetStats() => new()
    {
        BlocksTotal = _geometry.DataBlocks,
        BlocksUsed = _used,
        BlocksQuarantined = _quarantined,
        BlocksReserved = _reserve,
        BlocksKept = _blocksKept,
        SlotsKept = _slotsKept,
        BlocksFreeSoon = BlocksFreeSoon,
        BlocksPromised = _blocksPromised,
        SlotsPromised = _slotsPromised,
        LogBytes = (ulong)_geometry.RingPages * Units.BlockBytes,
        MediumBytes = _geometry.TotalBytes,
        SlotsTotal = _geometry.SlotCount,
        SlotsUsed = _slots.Used,
        SlotsReturning = _slots.Returning,
        MetadataResidentBytes = _slots.ResidentBytes,
        MetadataBudgetBytes = _options.MetadataBudgetBytes,
        MetadataTableBytes = _slots.TableBytes + _scattered.Bytes + _volumes.Values.Aggregate(0UL, (sum, v) => sum + v.Line.MapBytes),
        MetadataLoads = _pageLoads,
        MetadataEvictions = _slots.Evictions,
        BitmapBytes = _blocks.Bytes,
        BlocksBad = _blocks.Bad,
        BlocksFree = _blocks.Free,
        ExtentsScattered = _scatteredCount,
        BlocksRelaid = _blocksRelaid,
        RelayoutsLost = _relayoutsLost,
        RelayoutsSkipped = _relayoutsSkipped,
        RingOccupancy = RingOccupancy,
        Checkpoints = _checkpoints,
        CheckpointBytes = _checkpointBytes,
        CheckpointAgeNanos = _dirty.Count == 0 ? 0 : _loop.NowNanos - _checkpointedNanos,
        ChecksumErrors = _checksumErrors,
        IoErrors = _ioErrors,
        FailReason = _failReason,
    };

    /// <inheritdoc/>
    public ValueTask<IoStatus> FlushAsync() => Refusal is { } status ? new(status) : EnsureDurable(_appliedLsn);

    /// <inheritdoc/>
    public async ValueTask<IoStatus> CloseAsync()
    {
        if (State != StoreState.Online) return State == StoreState.Closed ? IoStatus.Ok : IoStatus.Unavailable;
        _isClosing = true;
        foreach (Volume volume in _volumes.Values) WakeAppendWaits(volume);
        while (_active > 0 || _background > 0)
        {
            // Nobody else checkpoints for those who wait for a page or for the ring.
            if (State == StoreState.Online && !_isCheckpointing && _frameWaiters.Count + _ringWaiters.Count + _checkpointWaiters.Count > 0)
                await CheckpointAsync();
            await _loop.DelayAsync(1_000_000);
        }

        _flushTimer.Stop();
        _relayTimer.Stop();
        while (State == StoreState.Online && _dirty.Count > 0) await CheckpointAsync();
        if (State != StoreState.Online) return IoStatus.Unavailable;
        IoStatus status = await EnsureDurable(_appliedLsn);
        if (status != IoStatus.Ok) return status;
        status = await WriteSuperblockAsync(_superblock with
        {
            IsClean = true, Incarnation = _superblock.Incarnation + 1, StartLsn = PageEnd(_nextPage - 1),
        });
        if (status == IoStatus.Ok) State = StoreState.Closed;
        WakeFrameWaiters();
        return status;
    }

    private IoStatus? Refusal =>
        State != StoreState.Online ? IoStatus.Unavailable : _isClosing ? IoStatus.ShuttingDown : null;

    /// <summary>Stops for good: nothing that failed is tried again. Requests whose memory is still lent to a write are
    /// answered when that write is.</summary>
    private void Fail(string reason)
    {
        if (State == StoreState.Failed) return;
        State = StoreState.Failed;
        _failReason = reason;
        _flushTimer.Stop();
        _relayTimer.Stop();
        Advance();
        WakeFlushWaiters();
        WakeRingWaiters();
        WakeFrameWaiters();
        WakeCheckpointWaiters();
        foreach (Volume volume in _volumes.Values)
        {
            LetHeldGo(volume);
            WakeAppendWaits(volume);
        }
    }

    private static ulong PageEnd(ulong page) => page * Units.BlockBytes + Units.BlockBytes - 1;
}
