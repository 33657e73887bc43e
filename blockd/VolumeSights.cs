using System.Runtime.InteropServices;
using BlockServer.Cluster;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>What the loops know of a volume and the API shows.</summary>
/// <param name="UsedBytes">Allocated; null while its disk does not serve it.</param>
/// <param name="Base">The snapshot that it was cloned from and shares blocks with, or null.</param>
/// <param name="BaseName">Name of that snapshot.</param>
/// <param name="IsFlattening">They are being copied.</param>
/// <param name="Snapshots">How many it has.</param>
/// <param name="Reservation">What initiators hold of it, or null.</param>
internal readonly record struct VolumeSight(
    ulong? UsedBytes, (uint VolumeId, Guid Snapshot)? Base, string? BaseName, bool IsFlattening, int Snapshots, ReservationInfo? Reservation)
{
    // Clients of a loop wait while it looks: 10,000 volumes are looked at in parts.
    private const int VolumesAtOnce = 512;

    /// <summary>Looks at volumes: one volume takes one visit to its loop. What is not served is not in the answer. Any thread but a loop's.</summary>
    public static async Task<IReadOnlyDictionary<uint, VolumeSight>> OfAsync(Daemon daemon, IReadOnlyList<VolumeRecord> volumes)
    {
        var sights = new Dictionary<uint, VolumeSight>(volumes.Count);
        var visits = new Dictionary<LoopThread, List<(uint Id, StoreHost? Host)>>();
        foreach (VolumeRecord volume in volumes)
        {
            StoreHost? host = daemon.Stores.Find(volume.StoreId);
            LoopThread? held = daemon.Volumes.Find(volume.Id)?.Thread;
            if (host is not null) Of(visits, host.Thread).Add((volume.Id, host));
            // What is reserved belongs to the loop that serves the volume: another one while it moves.
            if (held is not null && held != host?.Thread) Of(visits, held).Add((volume.Id, null));
        }

        foreach ((LoopThread thread, (uint Id, StoreHost? Host)[] asked) in visits.SelectMany(v => v.Value.Chunk(VolumesAtOnce), (v, part) => (v.Key, part)))
        {
            await thread.InvokeAsync(() =>
            {
                foreach ((uint id, StoreHost? host) in asked)
                {
                    VolumeSight sight = sights.GetValueOrDefault(id);
                    if (host is not null) sight = host.Look(id) with { Reservation = sight.Reservation };
                    if (daemon.Volumes.Find(id)?.Thread == thread) sight = sight with { Reservation = daemon.Volumes.Describe(id) };
                    sights[id] = sight;
                }

                return new ValueTask<bool>(true);
            });
        }

        return sights;
    }

    private static List<(uint Id, StoreHost? Host)> Of(Dictionary<LoopThread, List<(uint Id, StoreHost? Host)>> visits, LoopThread thread)
    {
        ref List<(uint Id, StoreHost? Host)>? visit = ref CollectionsMarshal.GetValueRefOrAddDefault(visits, thread, out _);
        return visit ??= [];
    }
}
