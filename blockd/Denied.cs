using System.Net;
using BlockServer.Cluster;
using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>
/// Who is kept out, as the front ends and the API ask it. Whoever enters is entered first and asked about then; whoever denies
/// changes the list first and looks who is there then: so nobody slips through between. Thread-safe; a question takes no lock.
/// </summary>
internal sealed class Denied(DenyDirectory directory)
{
    private volatile Rules _rules = new([], [], []);

    /// <summary>Reads the list. Throws as <see cref="DenyDirectory.LoadAsync"/>.</summary>
    public async Task LoadAsync()
    {
        await directory.LoadAsync();
        Refresh();
    }

    /// <summary>Takes over what the directory says now.</summary>
    public void Refresh()
    {
        IReadOnlyList<DenyRecord> all = directory.List();
        _rules = new Rules(
            [.. all.Where(d => d.Kind == "address").Select(d => IPNetwork.TryParse(d.Value, out IPNetwork network) ? network : (IPNetwork?)null).OfType<IPNetwork>()],
            [.. all.Where(d => d.Kind == "initiator").Select(d => d.Value)],
            [.. all.Where(d => d.Kind == "token").Select(d => d.Value)]);
    }

    /// <summary>An address is denied; null (a unix socket) never is.</summary>
    public bool IsAddress(IPAddress? address)
    {
        IPNetwork[] networks = _rules.Networks;
        if (address is null || networks.Length == 0) return false;
        if (address.IsIPv4MappedToIPv6) address = address.MapToIPv4();
        foreach (IPNetwork network in networks)
        {
            if (network.Contains(address)) return true;
        }

        return false;
    }

    /// <summary>A peer (<c>ADDRESS:PORT</c>) comes from a denied address.</summary>
    public bool IsPeer(string peer) => _rules.Networks.Length > 0 && IsAddress(IscsiRules.AddressOf(peer));

    /// <summary>An initiator is denied, by its name.</summary>
    public bool IsInitiator(string name)
    {
        foreach (string pattern in _rules.Initiators)
        {
            if (NamePattern.Matches(pattern, name)) return true;
        }

        return false;
    }

    /// <summary>A token is denied, by its id.</summary>
    public bool IsToken(string id) => _rules.Tokens.Contains(id);

    /// <summary>A session may not go on.</summary>
    public bool IsSession(Session session) => IsPeer(session.Peer) || (session.Initiator is { } initiator && IsInitiator(initiator));

    private sealed record Rules(IPNetwork[] Networks, string[] Initiators, HashSet<string> Tokens);
}
