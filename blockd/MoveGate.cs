using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>Holds back the changes of volumes that move, by their gates, and brings those who use them to the new home. Append streams
/// end, and their clients come again. Any thread but a loop's.</summary>
internal sealed class MoveGate(StoreSet stores, SharedVolumes volumes, AppendStreams streams, TimeSpan patience) : IMoveGate
{
    /// <inheritdoc/>
    public async Task<IMoveHold?> HoldAsync(IReadOnlyList<VolumeRecord> members)
    {
        var hold = new Hold(stores, volumes, streams);
        Task<bool>[] taking = [.. members.Select(v => volumes.TakeGateAsync(v, hold.TryAdd))];
        // A change that does not end keeps others waiting behind the gate: not for long.
        await Task.WhenAny(Task.WhenAll(taking), Task.Delay(patience));
        if (taking.All(t => t is { IsCompletedSuccessfully: true, Result: true })) return hold;
        await hold.ReleaseAsync();
        return null;
    }

    private sealed class Hold(StoreSet stores, SharedVolumes volumes, AppendStreams streams) : IMoveHold
    {
        private readonly Lock _lock = new();
        private readonly List<(SharedVolume Volume, VolumeGate.Range Range)> _held = [];
        private bool _isReleased;

        /// <summary>On the volume's loop.</summary>
        public bool TryAdd(SharedVolume volume, VolumeGate.Range range)
        {
            lock (_lock)
            {
                if (_isReleased) return false;
                volume.IsHeld = true;
                _held.Add((volume, range));
                return true;
            }
        }

        public async Task SwitchAsync(IReadOnlyList<VolumeRecord> moved)
        {
            foreach (VolumeRecord volume in moved.Where(v => v.IsAppendOnly)) streams.StopVolume(volume.Id);
            foreach ((SharedVolume volume, _) in _held)
            {
                StoreHost host = stores.Find(moved.First(v => v.Id == volume.Id).StoreId)!;
                await volume.Thread.InvokeAsync(() => volumes.SwitchAsync(volume, host));
            }
        }

        public Task ReleaseAsync()
        {
            lock (_lock) _isReleased = true;
            return Task.WhenAll(_held.Select(h => h.Volume.Thread.InvokeAsync(() =>
            {
                h.Volume.IsHeld = false;
                h.Volume.Gate.Release(h.Range);
                return default;
            })));
        }

        public Task DrainAsync() => Task.WhenAll(_held.Select(h => h.Volume.Thread.InvokeAsync(async () =>
        {
            await h.Volume.Home.DrainAsync();
            foreach (HomeDevice snapshot in h.Volume.Snapshots.Values.ToArray()) await snapshot.DrainAsync();
        })));
    }
}
