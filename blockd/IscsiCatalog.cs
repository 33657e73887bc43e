using System.Net;
using System.Net.NetworkInformation;
using System.Text;
using BlockServer.Cluster;
using BlockServer.Io;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>One address at which iSCSI is served.</summary>
/// <param name="EndPoint">Bound address.</param>
/// <param name="Group">Tag of its portal group.</param>
internal sealed record IscsiPortal(IPEndPoint EndPoint, ushort Group)
{
    /// <summary>Only this machine reaches it.</summary>
    public bool IsLocal => IPAddress.IsLoopback(EndPoint.Address);

    /// <summary>It listens at every address of the machine.</summary>
    public bool IsAnywhere => EndPoint.Address.Equals(IPAddress.Any) || EndPoint.Address.Equals(IPAddress.IPv6Any);

    /// <summary>Where an initiator comes in.</summary>
    public PortalPlace Place => new(Group, IsLocal);
}

/// <summary>Which targets there are now: the configured ones, and the own ones of exported volumes. Thread-safe; answers are
/// snapshots.</summary>
internal sealed class IscsiCatalog(VolumeDirectory volumes, TargetDirectory targets, SharedVolumes shared, Settings settings, IscsiAuthentication? common)
{
    /// <summary>What the keys of volumes' own targets begin with; no name does.</summary>
    public const string OwnPrefix = "own/";

    private volatile IscsiPortal[] _portals = [];

    /// <summary>The portals, as they were bound.</summary>
    public IReadOnlyList<IscsiPortal> Portals => _portals;

    /// <summary>Who may discover; null: everybody on this machine.</summary>
    public IscsiAuthentication? Discovery => AuthenticationOf(TargetDirectory.Discovery);

    /// <summary>Enters a portal.</summary>
    public void Add(IscsiPortal portal) => _portals = [.. _portals, portal];

    /// <summary>A target by its name, or null. A snapshot has one too, PREFIX:VOLUME:SNAPSHOT; whether there is such a snapshot is
    /// found out when its unit is opened.</summary>
    public TargetView? Find(string name)
    {
        if (targets.Find(name) is { } record) return ViewOf(record);
        string head = settings.IscsiPrefix + ":";
        if (!name.StartsWith(head, StringComparison.Ordinal)) return null;
        string[] parts = name[head.Length..].Split(':', 2);
        return volumes.Find(parts[0]) is { Export.Iscsi: true } volume ? OwnOf(volume, parts.Length == 2 ? parts[1] : null) : null;
    }

    /// <summary>A target by <see cref="TargetView.Key"/>; a volume's own also under another name than it had.</summary>
    public TargetView? FindByKey(string key)
    {
        if (!key.StartsWith(OwnPrefix, StringComparison.Ordinal)) return targets.Find(key) is { } record ? ViewOf(record) : null;
        string[] parts = key[OwnPrefix.Length..].Split('/', 2);
        uint id = uint.Parse(parts[0], System.Globalization.CultureInfo.InvariantCulture);
        return volumes.Find(id) is { Export.Iscsi: true } volume ? OwnOf(volume, parts.Length == 2 ? parts[1] : null) : null;
    }

    /// <summary>All, by name.</summary>
    public IReadOnlyList<TargetView> List()
    {
        IReadOnlyList<TargetRecord> configured = targets.List();
        var taken = configured.Select(t => t.Name).ToHashSet(StringComparer.Ordinal);
        IEnumerable<TargetView> own = volumes.List().Where(v => v.Export.Iscsi && !taken.Contains(OwnNameOf(v))).Select(v => OwnOf(v));
        return [.. configured.Select(ViewOf).Concat(own).OrderBy(t => t.Name, StringComparer.Ordinal)];
    }

    /// <summary>The name of a volume's own target.</summary>
    public string OwnNameOf(VolumeRecord volume) => $"{settings.IscsiPrefix}:{volume.Name}";

    /// <summary>The loop of a target's units; null when none of their disks is in service.</summary>
    public LoopThread? ThreadOf(TargetView target) => target.Luns.Select(l => shared.ThreadOf(l.Volume)).FirstOrDefault(t => t is not null);

    /// <summary>Addresses of a target as SendTargets gives them, to somebody who came in at <paramref name="asked"/> (null: he is
    /// attached already). None: the address that was asked.</summary>
    public IReadOnlyList<string> AddressesOf(TargetView target, IscsiPortal? asked)
    {
        // Who comes from elsewhere has no use for the loopback addresses.
        IscsiPortal[] here = [.. _portals.Where(p => target.IsAt(p.Group) && (asked is null || asked.IsLocal || !p.IsLocal))];
        if (here.Any(p => p.IsAnywhere) && here.All(p => p.Group == 1)) return [];
        return [.. here.SelectMany(p => EndPointsOf(p).Select(e => $"{e},{p.Group}"))];
    }

    /// <summary>Where a target is that is not offered at <paramref name="asked"/>: <c>address:port</c>, or null.</summary>
    public string? ElsewhereOf(TargetView target, IscsiPortal asked) =>
        _portals.Where(p => target.IsAt(p.Group) && p.IsLocal == asked.IsLocal).SelectMany(EndPointsOf).FirstOrDefault()?.ToString();

    private static IEnumerable<IPEndPoint> EndPointsOf(IscsiPortal portal)
    {
        if (!portal.IsAnywhere) return [portal.EndPoint];
        return NetworkInterface.GetAllNetworkInterfaces()
            .Where(i => i.OperationalStatus == OperationalStatus.Up)
            .SelectMany(i => i.GetIPProperties().UnicastAddresses)
            .Select(a => a.Address)
            .Where(a => !IPAddress.IsLoopback(a) && !a.IsIPv6LinkLocal && a.AddressFamily == portal.EndPoint.AddressFamily)
            .Select(a => new IPEndPoint(a, portal.EndPoint.Port));
    }

    private TargetView OwnOf(VolumeRecord volume, string? snapshot = null)
    {
        var lun = new LunView(0, volume, snapshot is not null, snapshot);
        string name = snapshot is null ? OwnNameOf(volume) : $"{OwnNameOf(volume)}:{snapshot}";
        return new TargetView(name, lun.Name, 0, true, [lun], [], [new TargetAccess("*", null)], common);
    }

    private TargetView ViewOf(TargetRecord record)
    {
        var known = volumes.List().ToDictionary(v => v.Id);
        return new TargetView(
            record.Name, record.Description, record.Number, record.Enabled,
            [.. record.Luns.Where(l => known.ContainsKey(l.VolumeId)).Select(l => new LunView(l.Lun, known[l.VolumeId], l.ReadOnly, l.SnapshotName, l.Snapshot))],
            record.PortalGroups, record.Access, AuthenticationOf(record.Name));
    }

    private IscsiAuthentication? AuthenticationOf(string name)
    {
        IReadOnlyList<ChapUserSecret> users = targets.SecretsOf(name);
        if (users.All(u => u.Mutual)) return common;
        ChapUserSecret? mutual = users.FirstOrDefault(u => u.Mutual);
        return new IscsiAuthentication(
            users.Where(u => !u.Mutual).ToDictionary(u => u.User, u => Encoding.UTF8.GetBytes(u.Secret), StringComparer.Ordinal),
            mutual?.User, mutual is null ? null : Encoding.UTF8.GetBytes(mutual.Secret));
    }
}
