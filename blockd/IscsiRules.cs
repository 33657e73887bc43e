using System.Net;
using System.Net.Sockets;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi;

namespace BlockServer.Blockd;

/// <summary>A volume as a unit of a target, or a snapshot of it: then by its name, and perhaps its identity.</summary>
internal sealed record LunView(ushort Lun, VolumeRecord Volume, bool ReadOnly, string? SnapshotName = null, Guid? Snapshot = null)
{
    /// <summary>VOLUME, or VOLUME@SNAPSHOT.</summary>
    public string Name => SnapshotName is null ? Volume.Name : $"{Volume.Name}@{SnapshotName}";
}

/// <summary>A target as it is at one moment, whether configured or a volume's own. Immutable.</summary>
/// <param name="Name">IQN.</param>
/// <param name="Alias">For people; null for none.</param>
/// <param name="Number">Number of a configured target; 0 for a volume's own.</param>
/// <param name="Enabled">Initiators may log in.</param>
/// <param name="Luns">Its units.</param>
/// <param name="PortalGroups">Where it is offered; empty: everywhere.</param>
/// <param name="Access">Who may log in.</param>
/// <param name="Authentication">How they prove themselves; null: they need not.</param>
internal sealed record TargetView(
    string Name, string? Alias, ushort Number, bool Enabled, IReadOnlyList<LunView> Luns, IReadOnlyList<ushort> PortalGroups,
    IReadOnlyList<TargetAccess> Access, IscsiAuthentication? Authentication)
{
    /// <summary>A volume's own target.</summary>
    public bool IsOwn => Number == 0;

    /// <summary>What it is known by while it is served; a volume's own target keeps it when the volume is renamed.</summary>
    public string Key => !IsOwn ? Name
        : IscsiCatalog.OwnPrefix + Luns[0].Volume.Id.ToString(System.Globalization.CultureInfo.InvariantCulture)
            + (Luns[0].SnapshotName is { } snapshot ? "/" + snapshot : "");

    /// <summary>It is offered at a portal group.</summary>
    public bool IsAt(ushort group) => PortalGroups.Count == 0 || PortalGroups.Contains(group);
}

/// <summary>Where an initiator came in.</summary>
/// <param name="Group">Portal group.</param>
/// <param name="IsLocal">Only this machine reaches the portal.</param>
internal readonly record struct PortalPlace(ushort Group, bool IsLocal);

/// <summary>Who may log in where. Pure.</summary>
internal static class IscsiRules
{
    /// <summary>What an initiator, that need not have proved itself yet, is answered at a portal: Success, NotFound (disabled, or
    /// not at this portal group: perhaps at another one), or AuthorizationFailure.</summary>
    public static IscsiLoginStatus Decide(TargetView target, string initiator, IPAddress? address, PortalPlace portal, bool insecure)
    {
        if (!target.Enabled) return IscsiLoginStatus.NotFound;
        if (!IsLetIn(target.Access, initiator, address) || IsTooOpen(target, portal, insecure)) return IscsiLoginStatus.AuthorizationFailure;
        return target.IsAt(portal.Group) ? IscsiLoginStatus.Success : IscsiLoginStatus.NotFound;
    }

    /// <summary>Beyond this machine nothing is served to who has not proved itself.</summary>
    public static bool IsTooOpen(TargetView target, PortalPlace portal, bool insecure) =>
        target.Authentication is null && !portal.IsLocal && !insecure;

    /// <summary>The user under which somebody logged in still exists, or he had none and needs none.</summary>
    public static bool IsProven(TargetView target, string? user) =>
        user is null ? target.Authentication is null : target.Authentication?.SecretOf(user) is not null;

    /// <summary>A rule matches.</summary>
    public static bool IsLetIn(IReadOnlyList<TargetAccess> rules, string initiator, IPAddress? address)
    {
        foreach (TargetAccess rule in rules)
        {
            if (NamePattern.Matches(rule.Initiator, initiator) && (rule.Address is null || (address is not null && IsIn(rule.Address, address)))) return true;
        }

        return false;
    }

    /// <summary>Lower case of a pattern; null when no name could be meant.</summary>
    public static string? NormalizePattern(string pattern)
    {
        string lower = pattern.ToLowerInvariant();
        bool fits = lower.Length is > 0 and <= IscsiName.BytesMax;
        foreach (char c in lower) fits &= char.IsAsciiLetterLower(c) || char.IsAsciiDigit(c) || c is '.' or '-' or ':' or '_' or '*' or '?';
        if (!fits) return null;
        bool hasWildcard = lower.AsSpan().IndexOfAny('*', '?') >= 0;
        return hasWildcard || IscsiName.TryNormalize(lower, out _) ? lower : null;
    }

    /// <summary>A network as it is kept; null when it is none. One address is a network of one.</summary>
    public static string? NormalizeNetwork(string text)
    {
        if (IPNetwork.TryParse(text, out IPNetwork network))
        {
            // Bits behind the prefix are a slip of the hand: who is meant is not known.
            bool isExact = IPAddress.TryParse(text.Split('/')[0], out IPAddress? named) && named.Equals(network.BaseAddress);
            return isExact ? network.ToString() : null;
        }

        if (text.Contains('/', StringComparison.Ordinal) || !IPAddress.TryParse(text, out IPAddress? one)) return null;
        bool isLong = one.AddressFamily == AddressFamily.InterNetworkV6;
        if (!isLong && text.Count(c => c == '.') != 3) return null; // "10" would be 0.0.0.10
        return new IPNetwork(one, isLong ? 128 : 32).ToString();
    }

    /// <summary>The address of a peer (<c>ADDRESS:PORT</c>), or null.</summary>
    public static IPAddress? AddressOf(string peer)
    {
        if (!IPEndPoint.TryParse(peer, out IPEndPoint? endPoint)) return null;
        return endPoint.Address.IsIPv4MappedToIPv6 ? endPoint.Address.MapToIPv4() : endPoint.Address;
    }

    private static bool IsIn(string network, IPAddress address) => IPNetwork.TryParse(network, out IPNetwork net) && net.Contains(address);
}
