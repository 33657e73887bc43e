using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>Holds back the changes of volumes by their gates, which every front end passes, whatever loop they live on. Any thread
/// but a loop's.</summary>
internal sealed class CutGate(SharedVolumes volumes, TimeSpan pauseMax) : ICutGate
{
    /// <inheritdoc/>
    public async Task<ICutHold?> HoldAsync(IReadOnlyList<VolumeRecord> members)
    {
        var hold = new Hold(Task.Delay(pauseMax));
        Task<bool>[] taking = [.. members.Select(v => volumes.TakeGateAsync(v, hold.TryAdd))];
        await Task.WhenAny(Task.WhenAll(taking), hold.Expired);
        bool isHeld = taking.All(t => t is { IsCompletedSuccessfully: true, Result: true });
        if (isHeld) return hold;
        await hold.ReleaseAsync();
        return null;
    }

    private sealed class Hold : ICutHold
    {
        private readonly Lock _lock = new();
        private readonly List<(SharedVolume Volume, VolumeGate.Range Range)> _held = [];
        private Task? _released;
        private bool _isLate;

        public Hold(Task expired)
        {
            Expired = expired;
            _ = EndAsync();
        }

        public Task Expired { get; }

        public bool TryAdd(SharedVolume volume, VolumeGate.Range range)
        {
            lock (_lock)
            {
                if (_released is not null) return false;
                _held.Add((volume, range));
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

        private Task LetGoAsync() => Task.WhenAll(_held.Select(h => h.Volume.Thread.InvokeAsync(() =>
        {
            h.Volume.Gate.Release(h.Range);
            return default;
        })));
    }
}
