namespace BlockServer.Protocols.Iscsi;

/// <summary>What there is to log in to. Called on the loop of the login.</summary>
public interface IIscsiTargets
{
    /// <summary>Looks a target up for an initiator whose name is not proven yet. Names are in lower case.</summary>
    IscsiLookup Find(string targetName, string initiatorName, string peer);

    /// <summary>Who may discover; null: everybody.</summary>
    IscsiAuthentication? Discovery { get; }

    /// <summary>What SendTargets shows to <paramref name="initiatorName"/>, who proved to be <paramref name="user"/> (null
    /// without CHAP).</summary>
    IReadOnlyList<IscsiListing> List(string initiatorName, string? user, string peer);
}

/// <summary>A target as SendTargets shows it.</summary>
/// <param name="Name">IQN.</param>
/// <param name="Addresses">Portals: <c>address:port,group</c>.</param>
public readonly record struct IscsiListing(string Name, IReadOnlyList<string> Addresses);

/// <summary>Answer to a lookup.</summary>
/// <param name="Status">Success, or why not: not found, authorization failure, moved, removed, unavailable.</param>
/// <param name="Entry">The target, with success.</param>
/// <param name="MovedTo">Address with moved: <c>address:port</c>.</param>
public readonly record struct IscsiLookup(IscsiLoginStatus Status, IscsiTargetEntry? Entry = null, string? MovedTo = null);

/// <summary>What a login needs to know of a target.</summary>
public sealed class IscsiTargetEntry
{
    /// <summary>IQN.</summary>
    public required string Name { get; init; }

    /// <summary>For people; null for none.</summary>
    public string? Alias { get; init; }

    /// <summary>Target portal group tag of the portal that was reached.</summary>
    public ushort PortalGroup { get; init; } = 1;

    /// <summary>Who may log in; null: everybody.</summary>
    public IscsiAuthentication? Authentication { get; init; }

    /// <summary>The daemon's own.</summary>
    public object? Tag { get; init; }
}

/// <summary>CHAP as it is configured. Immutable.</summary>
public sealed class IscsiAuthentication
{
    private readonly Dictionary<string, byte[]> _users;

    /// <summary>Throws <see cref="ArgumentException"/> when a secret serves both directions: a reflected challenge could
    /// then be answered.</summary>
    public IscsiAuthentication(IReadOnlyDictionary<string, byte[]> users, string? mutualName = null, byte[]? mutualSecret = null)
    {
        _users = new Dictionary<string, byte[]>(users, StringComparer.Ordinal);
        (MutualName, MutualSecret) = (mutualName, mutualSecret);
        if ((mutualName is null) != (mutualSecret is null)) throw new ArgumentException("mutual CHAP needs a name and a secret");
        if (mutualSecret is not null && _users.Values.Any(s => s.AsSpan().SequenceEqual(mutualSecret)))
            throw new ArgumentException("the secrets of the two directions must differ");
    }

    /// <summary>By what name we prove ourselves; null: we do not.</summary>
    public string? MutualName { get; }

    /// <summary>The secret by which we prove ourselves.</summary>
    public byte[]? MutualSecret { get; }

    /// <summary>Which algorithms are offered.</summary>
    public IReadOnlyCollection<ChapAlgorithm> Algorithms { get; init; } = [.. Chap.Preference];

    /// <summary>Secret of a user, or null.</summary>
    public byte[]? SecretOf(string user) => _users.GetValueOrDefault(user);
}
