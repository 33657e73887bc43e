using BlockServer.Cluster;

namespace BlockServer.Blockd;

/// <summary>A gate that is held; whoever holds it lets it go once, from any thread but a loop's.</summary>
internal readonly record struct HeldGate(Func<Task> ReleaseAsync);

/// <summary>Rules of cuts over several stores that a test breaks, to see that it is noticed.</summary>
[Flags]
internal enum BrokenCuts
{
    None = 0,

    /// <summary>Changes go on before the stores are cut. Of one volume alone that would do no harm: whoever orders his writes waits
    /// for the others.</summary>
    ReleaseEarly = 1,

    /// <summary>Only changes of the first volume are held back.</summary>
    HoldFirst = 2,
}

/// <summary>Holds back the changes of volumes by their gates, which every front end passes, whatever loop they live on. Any thread
/// but a loop's.</summary>
/// <param name="take">Takes a volume's gate and hands it over when no change is under way; false when that is not to be had, or when it
/// came too late to be wanted: then it is let go again.</param>
/// <param name="pause">Ends when changes may not be held back any longer.</param>
internal sealed class CutGate(Func<VolumeRecord, Func<HeldGate, bool>, Task<bool>> take, Func<Task> pause) : ICutGate
{
    /// <summary>The gates of the daemon's volumes.</summary>
    public CutGate(SharedVolumes volumes, TimeSpan pauseMax)
        : this(
            (record, keep) => volumes.TakeGateAsync(record, (volume, range) => keep(new HeldGate(() => volume.Thread.InvokeAsync(() =>
            {
                volume.Gate.Release(range);
                return default;
            })))),
            () => Task.Delay(pauseMax))
    {
    }

    /// <summary>Tests only.</summary>
    public BrokenCuts Broken { get; init; }

    /// <inheritdoc/>
    public async Task<ICutHold?> HoldAsync(IReadOnlyList<VolumeRecord> members)
    {
        var hold = new Hold(pause());
        IEnumerable<VolumeRecord> held = Broken.HasFlag(BrokenCuts.HoldFirst) ? members.Take(1) : members;
        Task<bool>[] taking = [.. held.Select(v => take(v, hold.TryAdd))];
        await Task.WhenAny(Task.WhenAll(taking), hold.Expired);
        bool isHeld = taking.All(t => t is { IsCompletedSuccessfully: true, Result: true });
        if (isHeld && Broken.HasFlag(BrokenCuts.ReleaseEarly)) await hold.ReleaseAsync();
        if (isHeld) return hold;
        await hold.ReleaseAsync();
        return null;
    }

    private sealed class Hold : ICutHold
    {
        private readonly Lock _lock = new();
        private readonly List<HeldGate> _held = [];
        private Task? _released;
        private bool _isLate;

        public Hold(Task expired)
        {
            Expired = expired;
            _ = EndAsync();
        }

        public Task Expired { get; }

        public bool TryAdd(HeldGate gate)
        {
            lock (_lock)
            {
                if (_released is not null) return false;
                _held.Add(gate);
                return true;
            }
        }

        public async Task<bool> ReleaseAsync()
        {
            Task released;
            lock (_lock) released = _released ??= LetGoAsync();
            await released;
            lock (_lock) return !_isLate;
        }

        // Whoever holds it may wait for a disk that does not answer: clients of the others go on all the same.
        private async Task EndAsync()
        {
            await Expired;
            lock (_lock)
            {
                if (_released is not null) return;
                _isLate = true;
                _released = LetGoAsync();
            }
        }

        private Task LetGoAsync() => Task.WhenAll(_held.Select(h => h.ReleaseAsync()));
    }
}
