using BlockServer.Core;
using BlockServer.Core.Api;

namespace BlockServer.Cluster;

// What volumes are promised (docs/decisions/0014): the record says it, the store keeps it. A promise is made before the record says
// so and taken back after it does not any more, so what a record says is always kept.
public sealed partial class VolumeDirectory
{
    /// <summary>Volumes whose creation does not say are thin.</summary>
    public bool IsThinByDefault { get; set; }

    /// <summary>Why a volume of this size cannot be promised on a store, or null.</summary>
    private static async Task<DirectoryFault?> PromiseFaultAsync(IVolumeHost host, uint id, ulong bytes, string field = "sizeBytes") =>
        await host.PromiseAsync(id, bytes, isForced: false) switch
        {
            IoStatus.Ok => null,
            IoStatus.NoSpace => CapacityFault(bytes, await host.PromisableBytesAsync() ?? 0, field),
            IoStatus status => StoreFault(status),
        };

    private const string SmallerAdvice = "choose a smaller size, make it thin (it takes what is written, as long as there is room), delete something, or add a disk";

    private static DirectoryFault CapacityFault(ulong bytes, ulong left, string field, string advice = SmallerAdvice) => new(
        IoStatus.NoSpace, "capacity-exceeded",
        $"{SizeText.Format(bytes)} cannot be promised: {SizeText.Format(left / Units.MiB * Units.MiB)} of the disk are neither used nor promised to other volumes (pfcli capacity); {advice}", field);

    /// <summary>Thick is promised, and cannot be thin.</summary>
    private static DirectoryFault? ThinFault(bool? thin, ExportOptions export) => thin == true && export.Thick
        ? new(IoStatus.Invalid, "thin-and-thick", "a volume is thin or thick: all blocks of a thick one are allocated", "thin") : null;

    /// <summary>A new volume is promised its size. What is only a limit, the size of an append-only volume, is not unless that is said.</summary>
    private bool IsReserved(bool? thin, bool isAppendOnly) => isAppendOnly ? thin == false : !(thin ?? IsThinByDefault);

    /// <summary>The store keeps what the record says. Errors are its own: a store that does not serve keeps nothing.</summary>
    private async Task KeepPromiseAsync(VolumeRecord record)
    {
        if (_hosts.TryGetValue(record.StoreId, out IVolumeHost? host)) await host.PromiseAsync(record.Id, record.PromisedBytes, isForced: true);
    }

    /// <summary>Where a volume that is promised its size has room; or what the roomiest could promise.</summary>
    private async Task<(IVolumeHost? Host, ulong MostBytes)> PlaceReservedAsync(ulong bytes)
    {
        IVolumeHost? best = null;
        double bestRoom = 0;
        ulong most = 0;
        foreach (IVolumeHost host in _hosts.Values.OrderBy(h => h.StoreId))
        {
            if (IsDraining(host.StoreId)) continue;
            if (await host.PromisableBytesAsync() is not { } left || await host.FreeBytesAsync() is not { } free) continue;
            most = Math.Max(most, left);
            double room = (double)free - _table.PromisedBytes(host.StoreId);
            if (left < bytes || (best is not null && room <= bestRoom)) continue;
            (best, bestRoom) = (host, room);
        }

        return (best, most);
    }
}
