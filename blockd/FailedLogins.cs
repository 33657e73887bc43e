using BlockServer.Core;

namespace BlockServer.Blockd;

/// <summary>Addresses that guess: five wrong logins within ten seconds, and an address is not served for thirty. Lives on
/// one loop.</summary>
internal sealed class FailedLogins
{
    private const int FailuresMax = 5;
    private const ulong WithinNanos = 10_000_000_000, BlockNanos = 30_000_000_000;

    // Beyond it the oldest are forgotten: an attacker with so many addresses is not stopped by this.
    private const int AddressesMax = 4096;

    private readonly Dictionary<string, (int Count, ulong Since, ulong BlockedUntil)> _byAddress = new(StringComparer.Ordinal);

    /// <summary>Not to be served now.</summary>
    public bool IsBlocked(string address, ulong nowNanos) =>
        _byAddress.TryGetValue(address, out (int, ulong, ulong BlockedUntil) known) && nowNanos < known.BlockedUntil;

    /// <summary>Wrong credentials came from there.</summary>
    public void Add(string address, ulong nowNanos)
    {
        if (_byAddress.Count >= AddressesMax && !_byAddress.ContainsKey(address)) Forget(nowNanos);
        (int count, ulong since, ulong until) = _byAddress.GetValueOrDefault(address, (0, nowNanos, 0UL));
        if (nowNanos - since > WithinNanos) (count, since) = (0, nowNanos);
        if (++count >= FailuresMax) (count, since, until) = (0, nowNanos, nowNanos + BlockNanos);
        _byAddress[address] = (count, since, until);
    }

    private void Forget(ulong nowNanos)
    {
        foreach ((string address, (int _, ulong since, ulong until)) in _byAddress.ToArray())
        {
            if (nowNanos >= until && nowNanos - since > WithinNanos) _byAddress.Remove(address);
        }

        if (_byAddress.Count >= AddressesMax) _byAddress.Clear();
        Check.That(_byAddress.Count < AddressesMax);
    }
}
