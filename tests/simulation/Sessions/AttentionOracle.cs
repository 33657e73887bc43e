namespace BlockServer.Tests.Simulation.Sessions;

/// <summary>
/// The unit attentions that a unit may still tell one nexus: each cause allows one. A stronger reset swallows the weaker,
/// so fewer are right too, but a reset as such must be told.
/// </summary>
internal sealed class AttentionOracle
{
    private const ushort PowerOnOrReset = 0x2900;

    private readonly Dictionary<ushort, int> _allowed = new() { [PowerOnOrReset] = 1 };

    /// <summary>A reset happened, the login included, that the nexus was not told of yet.</summary>
    public bool OwesReset { get; private set; } = true;

    /// <summary>Resets that were told.</summary>
    public int ResetsTold { get; private set; }

    /// <summary>Something happens that may cause it.</summary>
    public void Allow(ushort code) => _allowed[code] = _allowed.GetValueOrDefault(code) + 1;

    /// <summary>A reset is over; <paramref name="toldBefore"/>: <see cref="ResetsTold"/> when it began.</summary>
    public void OnReset(int toldBefore) => OwesReset |= ResetsTold == toldBefore;

    /// <summary>A command ended without an answer here: it may have been told.</summary>
    public void OnLostAnswer()
    {
        OwesReset = false;
        ResetsTold++;
    }

    /// <summary>It was told; false when there is no cause for it (any more).</summary>
    public bool Take(ushort code)
    {
        if (code >> 8 == 0x29)
        {
            OwesReset = false;
            ResetsTold++;
        }

        int left = _allowed.GetValueOrDefault(code);
        if (left == 0) return false;
        _allowed[code] = left - 1;
        return true;
    }
}
